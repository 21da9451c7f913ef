/* Sentences of the error codes, and names and sizes of the dtypes. */

#include "core.h"

const char *gbnn_sentence(gbnn_code code) {
    switch (code) {
    case GBNN_OK: return "no error";
    case GBNN_NO_MEMORY: return "not enough memory";
    case GBNN_ARGUMENT: return "there is no such member or tensor";
    case GBNN_NOT_SAFETENSORS: return "this is not a safetensors file, or its header is damaged";
    case GBNN_NOT_AN_ARTIFACT: return "this is a safetensors file, but not an artifact of gbnn-compress";
    case GBNN_VERSION: return "this decoder reads format versions 1 and 2, and the file has another";
    case GBNN_HEADER: return "the file is damaged: its header should name one tensor of bytes for each network";
    case GBNN_SECTIONS: return "the file is damaged: its sections do not add up to its size";
    case GBNN_CHECKSUM: return "the file is damaged: the checksum of a section is wrong";
    case GBNN_DEFLATE: return "a compressed stream is damaged or has a wrong length";
    case GBNN_JSON: return "the manifest is not JSON in UTF-8";
    case GBNN_TENSORS: return "the manifest describes a tensor that cannot be";
    case GBNN_FACTS: return "the manifest lacks a fact, or holds one that cannot be";
    case GBNN_TOO_LARGE: return "the file would unpack into far more values than its size allows";
    case GBNN_BITS: return "a bit string ends too early, or holds a number that is too large";
    case GBNN_BANK: return "the bank holds components or scales that cannot be";
    case GBNN_TABLE: return "a frequency table holds symbols or levels that cannot be";
    case GBNN_STREAM: return "the ids do not end where their stream ends";
    case GBNN_OUTLIERS: return "there are more or fewer outliers than ids that name one";
    case GBNN_VECTOR: return "a vector has a grid that cannot be, or lacks its variances";
    case GBNN_RAW: return "the raw tensors are not as long as their shapes say";
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
