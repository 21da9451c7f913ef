/* Opening a file, and decoding its tensors. */

#include <stdlib.h>

#include "container.h"
#include "dense.h"
#include "ids.h"
#include "inflate.h"
#include "maths.h"
#include "vectors.h"

#define FREE_VALUES ((uint64_t)1 << 26)
#define VALUES_PER_BYTE ((uint64_t)1 << 10)
#define UNSHARED_COST 16

/* A shared tensor. Where its ids and outliers start is known once those before it are decoded. */
typedef struct {
    size_t tensor;
    table table;
    span words; /* version 2 */
    stack_state stack;
    size_t outliers; /* in bytes */
} shared;

typedef struct {
    int version;
    manifest manifest;
    bank bank;
    uint32_t *numbers; /* of each tensor among those of its kind */
    size_t n_shared, n_unshared;
    size_t n_known; /* shared tensors before this one are decoded; its start is known */
    shared *shared;
    vector *vectors;
    size_t *raw_starts; /* of each tensor, in bytes */
    span tables, ids, outliers, vector_bits, raw;
} network;

struct gbnn_file {
    arena memory;
    container container;
    network *networks;
};

/* What may be unpacked from a file: values, with unshared ones counted UNSHARED_COST times, and table entries. */
typedef struct {
    uint64_t values, entries, most;
    manifest_budget manifests;
} budget;

/* Splits a section in two parts, of which the first has its length before it. */
static bool split(span section, span *first, span *second) {
    uint64_t length;
    *first = *second = span_of(NULL, 0);
    if (section.size == 0) return true;
    if (!span_length(&section, &length) || length > section.size) return false;
    *first = span_take(&section, (size_t)length);
    *second = section;
    return true;
}

static gbnn_code check_size(const network *m, budget *left) {
    for (size_t index = 0; index < m->manifest.count; index++) {
        const gbnn_tensor *tensor = &m->manifest.tensors[index];
        bool is_unshared = tensor->kind == GBNN_UNSHARED && tensor->tied_to == GBNN_NOT_TIED;
        left->values += tensor->size * (is_unshared ? UNSHARED_COST : 1);
        if (left->values > left->most) return GBNN_TOO_LARGE;
    }
    left->entries += m->n_shared * ((uint64_t)m->bank.size + 1);
    return left->entries > left->most ? GBNN_TOO_LARGE : GBNN_OK;
}

/* Numbers the tensors of each kind, and sums the bytes of the raw ones. */
static gbnn_code number_tensors(network *m, arena *memory) {
    m->numbers = arena_take(memory, m->manifest.count + 1, sizeof(uint32_t));
    m->raw_starts = arena_take(memory, m->manifest.count + 1, sizeof(size_t));
    m->shared = arena_take(memory, m->manifest.count + 1, sizeof(shared));
    m->vectors = arena_take(memory, m->manifest.count + 1, sizeof(vector));
    if (m->numbers == NULL || m->raw_starts == NULL || m->shared == NULL || m->vectors == NULL) return GBNN_NO_MEMORY;
    for (size_t index = 0; index < m->manifest.count; index++) {
        const gbnn_tensor *tensor = &m->manifest.tensors[index];
        if (tensor->tied_to != GBNN_NOT_TIED) continue;
        if (tensor->kind == GBNN_SHARED) {
            m->numbers[index] = (uint32_t)m->n_shared;
            m->shared[m->n_shared++].tensor = index;
        } else if (tensor->kind == GBNN_UNSHARED) {
            m->numbers[index] = (uint32_t)m->n_unshared;
            m->vectors[m->n_unshared++].tensor = index;
        }
    }
    return GBNN_OK;
}

static gbnn_code read_tables(network *m) {
    bits from = bits_of(m->tables);
    for (size_t index = 0; index < m->n_shared; index++) {
        shared *each = &m->shared[index];
        TRY(table_read(&from, &m->manifest.tensors[each->tensor], m->bank.size, m->version, &each->table));
    }
    return GBNN_OK;
}

/* Finds the streams of version 2. */
static gbnn_code split_streams(network *m) {
    span rest = m->ids;
    for (size_t index = 0; index < m->n_shared; index++) {
        uint64_t words;
        if (m->shared[index].table.n_live == 1) continue;
        if (!span_length(&rest, &words) || words > rest.size / 4) return GBNN_STREAM;
        m->shared[index].words = span_take(&rest, 4 * (size_t)words);
    }
    return rest.size == 0 ? GBNN_OK : GBNN_STREAM;
}

/* What must hold once all ids are decoded. */
static gbnn_code check_end(const network *m, stack_state stack, size_t outliers) {
    if (m->version == 1 && (stack.state != 0 || stack.left != 0)) return GBNN_STREAM;
    return outliers == m->outliers.size ? GBNN_OK : GBNN_OUTLIERS;
}

static gbnn_code start_ids(network *m) {
    stack_state stack = {0, 0};
    if (m->version == 2) TRY(split_streams(m));
    else if (m->ids.size % 4 != 0 || !stack_start(m->ids, &stack)) return GBNN_STREAM;
    if (m->n_shared == 0) return check_end(m, stack, 0);
    m->shared[0].stack = stack;
    return GBNN_OK;
}

static gbnn_code inflate_raw(network *m, span stream, arena *memory) {
    uint64_t total = 0;
    size_t size = 0;
    for (size_t index = 0; index < m->manifest.count; index++) {
        const gbnn_tensor *tensor = &m->manifest.tensors[index];
        if (tensor->kind != GBNN_RAW_BYTES || tensor->tied_to != GBNN_NOT_TIED) continue;
        m->raw_starts[index] = (size_t)total;
        total += tensor->size_bytes;
    }
    if (stream.size == 0) return total == 0 ? GBNN_OK : GBNN_RAW;
    if (total > (uint64_t)stream.size * LARGEST_EXPANSION) return GBNN_RAW;
    unsigned char *bytes = arena_take(memory, total + 1, 1);
    if (bytes == NULL) return GBNN_NO_MEMORY;
    TRY(inflate_stream(stream, span_of(NULL, 0), bytes, (size_t)total + 1, &size));
    m->raw = span_of(bytes, size);
    return size == total ? GBNN_OK : GBNN_RAW;
}

/* A tied tensor is described as the one that holds its values, but by its own name. */
static void describe_ties(manifest *in) {
    for (size_t index = 0; index < in->count; index++) {
        gbnn_tensor tensor = in->tensors[index];
        if (tensor.tied_to == GBNN_NOT_TIED) continue;
        in->tensors[index] = in->tensors[tensor.tied_to];
        in->tensors[index].name = tensor.name;
        in->tensors[index].name_bytes = tensor.name_bytes;
        in->tensors[index].tied_to = tensor.tied_to;
    }
}

static gbnn_code open_member(const container_member *from, span dictionary, budget *left, arena *memory, network *m,
                             span *following) {
    span sections[N_SECTIONS], raw;
    m->version = from->version;
    TRY(container_sections(from, sections));
    TRY(manifest_read(sections[MANIFEST], &left->manifests, dictionary, memory, &m->manifest, following));
    TRY(number_tensors(m, memory));
    TRY(bank_read(sections[BANK], m->n_shared, memory, &m->bank));
    TRY(check_size(m, left));
    if (!split(sections[MAPS], &m->tables, &m->ids) || !split(sections[VALUES], &m->vector_bits, &raw)) {
        return GBNN_SECTIONS;
    }
    m->outliers = sections[OUTLIERS];
    TRY(read_tables(m));
    TRY(start_ids(m));
    TRY(vectors_read(m->vector_bits, &m->manifest, m->numbers, m->n_unshared, m->vectors));
    TRY(inflate_raw(m, raw, memory));
    describe_ties(&m->manifest);
    return GBNN_OK;
}

static gbnn_code open_members(gbnn_file *file, span bytes, size_t *damaged) {
    TRY(container_open(bytes, &file->container));
    size_t count = file->container.count;
    const manifest_budget manifests = {MOST_JSON_BYTES, MOST_NAME_CHARACTERS};
    budget left = {0, 0, FREE_VALUES + VALUES_PER_BYTE * bytes.size, manifests};
    span dictionary = manifest_dictionary(), following = dictionary;
    file->networks = arena_take(&file->memory, count, sizeof(network));
    if (file->networks == NULL) return GBNN_NO_MEMORY;
    for (size_t index = 0; index < count; index++) {
        span *next = count > 1 && index == 0 ? &following : NULL;
        const container_member *from = &file->container.members[index];
        span before = index == 0 ? dictionary : following;
        gbnn_code code = open_member(from, before, &left, &file->memory, &file->networks[index], next);
        if (code != GBNN_OK && count > 1) *damaged = index;
        TRY(code);
    }
    return GBNN_OK;
}

gbnn_code gbnn_open(const void *data, size_t size, gbnn_file **file, size_t *member) {
    size_t damaged = SIZE_MAX;
    gbnn_code code = GBNN_NO_MEMORY;
    *file = calloc(1, sizeof **file);
    if (*file != NULL) code = open_members(*file, span_of(data, size), &damaged);
    if (member != NULL) *member = damaged;
    if (code == GBNN_OK) return GBNN_OK;
    gbnn_close(*file);
    *file = NULL;
    return code;
}

void gbnn_close(gbnn_file *file) {
    if (file == NULL) return;
    arena_free(&file->memory);
    free(file);
}

size_t gbnn_members(const gbnn_file *file) { return file->container.count; }

int gbnn_version(const gbnn_file *file, size_t member) { return file->networks[member].version; }

size_t gbnn_count(const gbnn_file *file, size_t member) { return file->networks[member].manifest.count; }

gbnn_tensor gbnn_describe(const gbnn_file *file, size_t member, size_t index) {
    return file->networks[member].manifest.tensors[index];
}

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
    if (bytes > m->outliers.size - each->outliers) return GBNN_OUTLIERS;
    size_t stop = each->outliers + (size_t)bytes;
    if (number + 1 == m->n_shared) TRY(check_end(m, stack, stop));
    if (number == m->n_known && number + 1 < m->n_shared) {
        m->shared[number + 1].stack = stack;
        m->shared[number + 1].outliers = stop;
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
    return ids->bytes == NULL ? GBNN_NO_MEMORY : GBNN_OK;
}

/* Decodes shared tensors until the start of this one is known. In version 2 only outliers must be counted. */
static gbnn_code find_start(network *m, size_t number) {
    while (m->n_known < number) {
        const shared *each = &m->shared[m->n_known];
        id_array ids;
        arena scratch = {NULL};
        if (m->version == 2 && !each->table.has_outliers) {
            m->shared[m->n_known + 1].outliers = each->outliers;
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
    uint64_t *members = arena_take(scratch, (uint64_t)size + 1, sizeof(uint64_t));
    if (members == NULL) return GBNN_NO_MEMORY;
    for (size_t place = 0; place < (size_t)tensor->size; place++) members[get_id(ids.bytes, ids.width, place)]++;
    for (uint32_t k = 0; k < size; k++) {
        double normal = from->next(from->context), deviation = 0;
        if (members[k] > 0 && m->bank.means[k] != 0) {
            deviation = noise * exponential(m->bank.eighths[k] / 8.0) / square_root((double)members[k]);
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
                double number = number_of(pattern, tensor->dtype) + noise * from->next(from->context);
                pattern = pattern_of(number, tensor->dtype);
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
    if (values == NULL || patterns == NULL) return GBNN_NO_MEMORY;
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
    const unsigned char *outliers = m->outliers.data + each->outliers;
    unsigned width = (unsigned)gbnn_dtype_bytes(tensor->dtype);
    if (ids.width != width) replace_ids(m, tensor, ids, patterns, outliers, noise, from, out, width, ids.width);
    else FOR_WIDTH(width, replace_ids(m, tensor, ids, patterns, outliers, noise, from, out, WIDTH, WIDTH));
    return GBNN_OK;
}

static gbnn_code decode(gbnn_file *file, size_t number, size_t index, const normals *from, void *out) {
    if (number >= file->container.count) return GBNN_ARGUMENT;
    network *m = &file->networks[number];
    if (index >= m->manifest.count) return GBNN_ARGUMENT;
    while (m->manifest.tensors[index].tied_to != GBNN_NOT_TIED) index = m->manifest.tensors[index].tied_to;
    const gbnn_tensor *tensor = &m->manifest.tensors[index];
    if (tensor->size_bytes > SIZE_MAX / 2) return GBNN_NO_MEMORY;
    if (tensor->kind == GBNN_RAW_BYTES) {
        if (tensor->size_bytes > 0) memcpy(out, m->raw.data + m->raw_starts[index], (size_t)tensor->size_bytes);
        return GBNN_OK;
    }
    if (tensor->kind == GBNN_UNSHARED) {
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
