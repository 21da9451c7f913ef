/* What JavaScript calls. There is one file per instance. */

#include <stdlib.h>

#include "../gbnn.h"

#define EXPORT(name) __attribute__((export_name(#name))) name

typedef struct {
    uint32_t name, name_bytes, dtype, dimensions, shape, tied_to;
    double size_bytes;
} description;

static gbnn_file *file;
static size_t damaged;

unsigned char *EXPORT(allocate)(size_t size) { return malloc(size); }

void EXPORT(release)(unsigned char *memory) { free(memory); }

int EXPORT(open_file)(const unsigned char *data, size_t size) { return (int)gbnn_open(data, size, &file, &damaged); }

int EXPORT(damaged_member)(void) { return damaged == SIZE_MAX ? -1 : (int)damaged; }

size_t EXPORT(members)(void) { return gbnn_member_count(file); }

size_t EXPORT(count)(size_t member) { return gbnn_tensor_count(file, member); }

const description *EXPORT(describe)(size_t member, size_t index) {
    static description result;
    gbnn_tensor tensor = gbnn_describe(file, member, index);
    result.name = (uint32_t)(uintptr_t)tensor.name;
    result.name_bytes = (uint32_t)tensor.name_bytes;
    result.dtype = (uint32_t)(uintptr_t)gbnn_dtype_name(tensor.dtype);
    result.dimensions = (uint32_t)tensor.dimensions;
    result.shape = (uint32_t)(uintptr_t)tensor.shape;
    result.tied_to = tensor.tied_to == GBNN_NOT_TIED ? UINT32_MAX : (uint32_t)tensor.tied_to;
    result.size_bytes = (double)tensor.size_bytes;
    return &result;
}

int EXPORT(decode)(size_t member, size_t index, unsigned char *out) { return (int)gbnn_decode(file, member, index, out); }

__attribute__((import_module("env"), import_name("normal"))) double next_normal(void);

static double normal(void *context) {
    (void)context;
    return next_normal();
}

int EXPORT(draw)(size_t member, size_t index, unsigned char *out) {
    return (int)gbnn_draw(file, member, index, normal, NULL, out);
}

const char *EXPORT(error_message)(int code) { return gbnn_error_message((gbnn_code)code); }
