/* Decoding the tensors of an open file. */

#include "dense.h"
#include "maths.h"
#include "network.h"

/* Decodes the ids of a shared tensor whose start is known, and notes where the next one starts. */
static gbnn_code decode_ids(network *m, size_t number, arena *scratch, id_array ids) {
    shared *each = &m->shared[number];
    const gbnn_tensor *tensor = &m->manifest.tensors[each->tensor];
    const table *of = &each->table;
    stack_state stack = each->stack;
    uint64_t outliers = of->has_outliers ? tensor->size : 0;
    if (of->n_live == 1) {
        for (size_t place = 0; place < (size_t)tensor->size; place++) put_id(ids, ids.width, place, of->only);
    } else {
        models with;
        TRY(models_make(m->tables, of, &m->bank, m->version, scratch, &with));
        if (m->version == 1) TRY(stack_decode(m->ids, &stack, tensor, of, &with, scratch, ids));
        else TRY(lanes_decode(each->words, tensor, of, &with, scratch, ids));
        if (of->has_outliers) {
            outliers = 0;
            for (size_t place = 0; place < (size_t)tensor->size; place++) {
                outliers += get_id(ids.bytes, ids.width, place) == m->bank.size;
            }
        }
    }
    uint64_t bytes = outliers * gbnn_dtype_bytes(tensor->dtype);
    if (bytes > m->outliers.size - each->outliers_start) return GBNN_ERROR_OUTLIERS;
    size_t stop = each->outliers_start + (size_t)bytes;
    if (number + 1 == m->n_shared) TRY(check_end(m, stack, stop));
    if (number == m->n_known && number + 1 < m->n_shared) {
        m->shared[number + 1].stack = stack;
        m->shared[number + 1].outliers_start = stop;
        m->n_known++;
    }
    return GBNN_OK;
}

/* Memory for ids: that of the weights, unless these are too narrow. */
static gbnn_code room_for_ids(const network *m, const gbnn_tensor *tensor, unsigned char *out, arena *scratch,
                              id_array *ids) {
    ids->width = (unsigned)gbnn_dtype_bytes(tensor->dtype);
    ids->bytes = out;
    ids->patterns = NULL;
    if (ids->width == 2 && m->bank.size > UINT16_MAX) ids->width = 4;
    if (out == NULL || ids->width > gbnn_dtype_bytes(tensor->dtype)) {
        ids->bytes = arena_take(scratch, tensor->size, ids->width);
    }
    return ids->bytes == NULL ? GBNN_ERROR_NO_MEMORY : GBNN_OK;
}

/* Decodes shared tensors until the start of this one is known. In version 2 only outliers must be counted. */
static gbnn_code find_start(network *m, size_t number) {
    while (m->n_known < number) {
        const shared *each = &m->shared[m->n_known];
        id_array ids;
        arena scratch = {NULL};
        if (m->version == 2 && !each->table.has_outliers) {
            m->shared[m->n_known + 1].outliers_start = each->outliers_start;
            m->n_known++;
            continue;
        }
        gbnn_code code = room_for_ids(m, &m->manifest.tensors[each->tensor], NULL, &scratch, &ids);
        if (code == GBNN_OK) code = decode_ids(m, m->n_known, &scratch, ids);
        arena_free(&scratch);
        TRY(code);
    }
    return GBNN_OK;
}

typedef struct {
    gbnn_normals next;
    void *context;
} normals;

/* Adds a draw's noise to the values of the components. */
static gbnn_code add_noise(const network *m, const gbnn_tensor *tensor, double noise, const normals *from, id_array ids,
                           arena *scratch, double *values) {
    uint32_t size = m->bank.size;
    uint64_t *counts = arena_take(scratch, (uint64_t)size + 1, sizeof(uint64_t));
    if (counts == NULL) return GBNN_ERROR_NO_MEMORY;
    for (size_t place = 0; place < (size_t)tensor->size; place++) counts[get_id(ids.bytes, ids.width, place)]++;
    for (uint32_t k = 0; k < size; k++) {
        double normal = from->next(from->context), deviation = 0;
        if (counts[k] > 0 && m->bank.means[k] != 0) {
            deviation = noise * exponential(m->bank.eighths[k] / 8.0) / square_root((double)counts[k]);
        }
        values[k] += deviation * normal;
    }
    return GBNN_OK;
}

/* Replaces ids by weights; `width` is that of a weight, perhaps as a constant. */
static inline void replace_ids(const network *m, const gbnn_tensor *tensor, id_array ids, const uint64_t *patterns,
                               const unsigned char *outliers, double noise, const normals *from, unsigned char *out,
                               unsigned width, unsigned id_width) {
    for (size_t place = 0; place < (size_t)tensor->size; place++) {
        uint32_t id = get_id(ids.bytes, id_width, place);
        uint64_t pattern = patterns[id];
        if (id == m->bank.size) {
            pattern = width == 2 ? load16(outliers) : width == 4 ? load32(outliers) : load64(outliers);
            outliers += width;
            if (from != NULL) {
                double value = number_of(pattern, tensor->dtype) + noise * from->next(from->context);
                pattern = pattern_of(value, tensor->dtype);
            }
        }
        store_pattern(out + width * place, width, pattern);
    }
}

static gbnn_code decode_shared(network *m, size_t number, const normals *from, arena *scratch, unsigned char *out) {
    const shared *each = &m->shared[number];
    const gbnn_tensor *tensor = &m->manifest.tensors[each->tensor];
    double scale = m->bank.scales[number], noise = m->manifest.noise * scale;
    uint32_t size = m->bank.size;
    double *values = arena_take(scratch, (uint64_t)size + 1, sizeof(double));
    uint64_t *patterns = arena_take(scratch, (uint64_t)size + 1, sizeof(uint64_t));
    id_array ids;
    if (values == NULL || patterns == NULL) return GBNN_ERROR_NO_MEMORY;
    TRY(find_start(m, number));
    for (uint32_t k = 0; k < size; k++) values[k] = m->bank.means[k] * scale;
    if (from == NULL && !each->table.has_outliers) { /* ids are not needed */
        for (uint32_t k = 0; k < size; k++) patterns[k] = pattern_of(values[k], tensor->dtype);
        ids.bytes = out;
        ids.width = (unsigned)gbnn_dtype_bytes(tensor->dtype);
        ids.patterns = patterns;
        return decode_ids(m, number, scratch, ids);
    }
    TRY(room_for_ids(m, tensor, out, scratch, &ids));
    TRY(decode_ids(m, number, scratch, ids));
    if (from != NULL) TRY(add_noise(m, tensor, noise, from, ids, scratch, values));
    for (uint32_t k = 0; k < size; k++) patterns[k] = pattern_of(values[k], tensor->dtype);
    const unsigned char *outliers = m->outliers.data + each->outliers_start;
    unsigned width = (unsigned)gbnn_dtype_bytes(tensor->dtype);
    if (ids.width != width) replace_ids(m, tensor, ids, patterns, outliers, noise, from, out, width, ids.width);
    else FOR_WIDTH(width, replace_ids(m, tensor, ids, patterns, outliers, noise, from, out, WIDTH, WIDTH));
    return GBNN_OK;
}

static gbnn_code decode(gbnn_file *file, size_t member, size_t index, const normals *from, void *out) {
    if (index >= gbnn_tensor_count(file, member)) return GBNN_ERROR_ARGUMENT;
    network *m = &file->networks[member];
    if (from != NULL && m->manifest.tensors[index].tied_to != GBNN_NOT_TIED) return GBNN_ERROR_ARGUMENT;
    while (m->manifest.tensors[index].tied_to != GBNN_NOT_TIED) index = m->manifest.tensors[index].tied_to;
    const gbnn_tensor *tensor = &m->manifest.tensors[index];
    if (tensor->size_bytes > SIZE_MAX / 2) return GBNN_ERROR_NO_MEMORY;
    if (tensor->kind == GBNN_KIND_RAW) {
        if (tensor->size_bytes > 0) memcpy(out, m->raw.data + m->raw_starts[index], (size_t)tensor->size_bytes);
        return GBNN_OK;
    }
    if (tensor->kind == GBNN_KIND_UNSHARED) {
        vector_decode(m->vector_bits, m->vectors, m->numbers[index], tensor, out);
        return GBNN_OK;
    }
    arena scratch = {NULL};
    gbnn_code code = decode_shared(m, m->numbers[index], from, &scratch, out);
    arena_free(&scratch);
    return code;
}

gbnn_code gbnn_decode(gbnn_file *file, size_t member, size_t index, void *out) {
    return decode(file, member, index, NULL, out);
}

gbnn_code gbnn_draw(gbnn_file *file, size_t member, size_t index, gbnn_normals next, void *context, void *out) {
    const normals from = {next, context};
    return decode(file, member, index, &from, out);
}
