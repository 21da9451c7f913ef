/* Messages of the error codes, and names and sizes of the dtypes. */

#include "core.h"

const char *gbnn_error_message(gbnn_code code) {
    switch (code) {
    case GBNN_OK: return "no error";
    case GBNN_ERROR_NO_MEMORY: return "not enough memory";
    case GBNN_ERROR_ARGUMENT: return "there is no such member or tensor, or a tied tensor is drawn";
    case GBNN_ERROR_NOT_SAFETENSORS: return "not a safetensors file, or its header is damaged";
    case GBNN_ERROR_NOT_AN_ARTIFACT: return "a safetensors file, but not an artifact of gbnn-compress";
    case GBNN_ERROR_VERSION: return "the format version is not supported: expected 1 or 2";
    case GBNN_ERROR_HEADER: return "damaged file: the header must name one tensor of bytes for each network";
    case GBNN_ERROR_SECTIONS: return "damaged file: the sections do not add up to its size";
    case GBNN_ERROR_CHECKSUM: return "damaged file: the checksum of a section is wrong";
    case GBNN_ERROR_DEFLATE: return "damaged file: a compressed stream is invalid or has a wrong length";
    case GBNN_ERROR_JSON: return "damaged file: the manifest is not JSON in UTF-8";
    case GBNN_ERROR_TENSORS: return "damaged file: the manifest describes an invalid tensor";
    case GBNN_ERROR_FACTS: return "damaged file: the manifest lacks an entry, or has an invalid one";
    case GBNN_ERROR_TOO_LARGE: return "the file would unpack to far more values than its size allows";
    case GBNN_ERROR_BITS: return "damaged file: a bit string ends too early, or holds too large a number";
    case GBNN_ERROR_BANK: return "damaged file: the bank has invalid components or scales";
    case GBNN_ERROR_TABLE: return "damaged file: a frequency table has invalid symbols or levels";
    case GBNN_ERROR_STREAM: return "damaged file: the ids do not end where their stream ends";
    case GBNN_ERROR_OUTLIERS: return "damaged file: the number of outliers is not that of the ids that refer to one";
    case GBNN_ERROR_UNSHARED: return "damaged file: an unshared tensor has an invalid grid, or lacks its variances";
    case GBNN_ERROR_RAW: return "damaged file: the raw tensors are not as long as their shapes say";
    }
    return "unknown error";
}

static const struct {
    const char *name;
    unsigned char bytes;
} DTYPES[GBNN_DTYPES] = {
    [GBNN_BOOL] = {"bool", 1},
    [GBNN_INT8] = {"int8", 1},
    [GBNN_UINT8] = {"uint8", 1},
    [GBNN_FLOAT8_E4M3FN] = {"float8_e4m3fn", 1},
    [GBNN_FLOAT8_E4M3FNUZ] = {"float8_e4m3fnuz", 1},
    [GBNN_FLOAT8_E5M2] = {"float8_e5m2", 1},
    [GBNN_FLOAT8_E5M2FNUZ] = {"float8_e5m2fnuz", 1},
    [GBNN_FLOAT8_E8M0FNU] = {"float8_e8m0fnu", 1},
    [GBNN_INT16] = {"int16", 2},
    [GBNN_UINT16] = {"uint16", 2},
    [GBNN_FLOAT16] = {"float16", 2},
    [GBNN_BFLOAT16] = {"bfloat16", 2},
    [GBNN_INT32] = {"int32", 4},
    [GBNN_UINT32] = {"uint32", 4},
    [GBNN_FLOAT32] = {"float32", 4},
    [GBNN_COMPLEX32] = {"complex32", 4},
    [GBNN_INT64] = {"int64", 8},
    [GBNN_UINT64] = {"uint64", 8},
    [GBNN_FLOAT64] = {"float64", 8},
    [GBNN_COMPLEX64] = {"complex64", 8},
    [GBNN_COMPLEX128] = {"complex128", 16},
};

const char *gbnn_dtype_name(gbnn_dtype dtype) { return dtype < GBNN_DTYPES ? DTYPES[dtype].name : "unknown"; }

size_t gbnn_dtype_bytes(gbnn_dtype dtype) { return dtype < GBNN_DTYPES ? DTYPES[dtype].bytes : 0; }
