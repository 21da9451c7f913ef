/* gbnn.h: reads artifacts of gbnn-compress (format versions 1 and 2, and ensembles) in C99.
 *
 *     gbnn_file *file;
 *     gbnn_code code = gbnn_open(bytes, size, &file, NULL);
 *     if (code != GBNN_OK) return puts(gbnn_error_message(code));
 *     for (size_t i = 0; i < gbnn_tensor_count(file, 0); i++) {
 *         gbnn_tensor tensor = gbnn_describe(file, 0, i);
 *         void *weights = malloc((size_t)tensor.size_bytes);
 *         code = gbnn_decode(file, 0, i, weights);
 *         ...
 *     }
 *     gbnn_close(file);
 *
 * Weights have the same bits as those that `gbnn-compress decompress` writes. The only exceptions are `exp` and `exp2`,
 * which are the decoder's own: float64 values that depend on them may differ in the last bit.
 *
 * Memory is the file, its raw tensors, the tensor that is decoded, and about 15 MB. Version 1 also takes 1 to 4 bytes
 * per weight, and for convolutions up to 12 bytes per kernel (each pair of an output and an input channel). Decoding
 * out of order may also need room for the ids of an earlier tensor, one at a time. Every length is checked before
 * memory is allocated for it. A damaged or forged file gives an error code.
 *
 * A gbnn_file must not be used by two threads at a time. Several files may be.
 */

#ifndef GBNN_H
#define GBNN_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define GBNN_API __attribute__((visibility("default")))
#else
#define GBNN_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    GBNN_OK = 0,
    GBNN_ERROR_NO_MEMORY,
    GBNN_ERROR_ARGUMENT,
    GBNN_ERROR_NOT_SAFETENSORS,
    GBNN_ERROR_NOT_AN_ARTIFACT,
    GBNN_ERROR_VERSION,
    GBNN_ERROR_HEADER,
    GBNN_ERROR_SECTIONS,
    GBNN_ERROR_CHECKSUM,
    GBNN_ERROR_DEFLATE,
    GBNN_ERROR_JSON,
    GBNN_ERROR_TENSORS,
    GBNN_ERROR_FACTS,
    GBNN_ERROR_TOO_LARGE,
    GBNN_ERROR_BITS,
    GBNN_ERROR_BANK,
    GBNN_ERROR_TABLE,
    GBNN_ERROR_STREAM,
    GBNN_ERROR_OUTLIERS,
    GBNN_ERROR_UNSHARED,
    GBNN_ERROR_RAW
} gbnn_code;

/* What a code means, in a few words. */
GBNN_API const char *gbnn_error_message(gbnn_code code);

/* Names of the dtypes are those of PyTorch: gbnn_dtype_name. */
typedef enum {
    GBNN_BOOL,
    GBNN_INT8,
    GBNN_UINT8,
    GBNN_FLOAT8_E4M3FN,
    GBNN_FLOAT8_E4M3FNUZ,
    GBNN_FLOAT8_E5M2,
    GBNN_FLOAT8_E5M2FNUZ,
    GBNN_FLOAT8_E8M0FNU,
    GBNN_INT16,
    GBNN_UINT16,
    GBNN_FLOAT16,
    GBNN_BFLOAT16,
    GBNN_INT32,
    GBNN_UINT32,
    GBNN_FLOAT32,
    GBNN_COMPLEX32,
    GBNN_INT64,
    GBNN_UINT64,
    GBNN_FLOAT64,
    GBNN_COMPLEX64,
    GBNN_COMPLEX128,
    GBNN_DTYPES
} gbnn_dtype;

GBNN_API const char *gbnn_dtype_name(gbnn_dtype dtype);
GBNN_API size_t gbnn_dtype_bytes(gbnn_dtype dtype);

typedef enum {
    GBNN_KIND_SHARED,   /* its weights are components of the bank */
    GBNN_KIND_UNSHARED, /* norms, biases and buffers, each with a grid of its own */
    GBNN_KIND_RAW /* stored as it is */
} gbnn_kind;

#define GBNN_NOT_TIED SIZE_MAX

typedef struct {
    const char *name;      /* UTF-8; a zero byte follows. Names may hold zero bytes themselves. */
    size_t name_bytes;     /* without the zero byte at the end */
    gbnn_kind kind;        /* of a tied tensor: of the one that holds its values; dtype and shape likewise */
    gbnn_dtype dtype;
    size_t dimensions;     /* 0 for a scalar */
    const uint64_t *shape; /* C order: the last dimension runs fastest */
    uint64_t size;         /* number of values: the product of the shape */
    uint64_t size_bytes;
    size_t tied_to;        /* index of an earlier tensor whose values it shares, or GBNN_NOT_TIED */
} gbnn_tensor;

typedef struct gbnn_file gbnn_file;

/* Opens an artifact and checks all of it but the ids, which are checked when they are decoded.
 *
 * data    the bytes of the file. They are not copied, and must stay as they are until gbnn_close.
 * file    where the file is put; NULL after an error.
 * member  NULL, or where the number of the damaged member of an ensemble is put; SIZE_MAX if it is no single member.
 */
GBNN_API gbnn_code gbnn_open(const void *data, size_t size, gbnn_file **file, size_t *member);

/* Frees what gbnn_open allocated; NULL is allowed. */
GBNN_API void gbnn_close(gbnn_file *file);

/* Number of networks in the file: 1, or that of an ensemble. */
GBNN_API size_t gbnn_member_count(const gbnn_file *file);

/* Format version of a member: 1 or 2; 0 if there is no such member. */
GBNN_API int gbnn_version(const gbnn_file *file, size_t member);

/* Number of tensors of a member, in the order of the network's state dict; 0 if there is no such member. */
GBNN_API size_t gbnn_tensor_count(const gbnn_file *file, size_t member);

/* What a tensor is. Pointers are valid until gbnn_close. The name is NULL if there is no such tensor. */
GBNN_API gbnn_tensor gbnn_describe(const gbnn_file *file, size_t member, size_t index);

/* Decodes the posterior mean of a tensor.
 *
 * Any order is possible. Decoding in ascending order is fastest: in version 1 a tensor's ids follow those of the tensors
 * before it in one stream, which are decoded first where they were not yet. A file is known to be undamaged once all of
 * its tensors are decoded.
 *
 * out  room for size_bytes of the tensor. Values are in the byte order of the machine, a boolean in one byte.
 */
GBNN_API gbnn_code gbnn_decode(gbnn_file *file, size_t member, size_t index, void *out);

/* Returns the next standard normal number. */
typedef double (*gbnn_normals)(void *context);

/* Decodes a posterior draw of a tensor.
 *
 * Of shared tensors, normals is called once for each component of the bank, in ascending order and whether it occurs or
 * not, and then once for each outlier. For other tensors it is not called: they are the same in the mean and in a draw.
 * A tied tensor (tied_to is not GBNN_NOT_TIED) is not drawn, but refused with GBNN_ERROR_ARGUMENT: copy the draw of the
 * tensor that it is tied to.
 * `gbnn-compress decompress --sample SEED` uses numpy.random.default_rng(SEED).standard_normal, for one shared tensor
 * after the other.
 */
GBNN_API gbnn_code gbnn_draw(gbnn_file *file, size_t member, size_t index, gbnn_normals normals, void *context,
                             void *out);

#ifdef __cplusplus
}
#endif

#endif
