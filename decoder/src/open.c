/* Opening a file: everything is read and checked but the ids. */

#include <stdlib.h>

#include "inflate.h"
#include "network.h"

#define FREE_VALUES ((uint64_t)1 << 26)
#define VALUES_PER_BYTE ((uint64_t)1 << 10)
#define UNSHARED_COST 16

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
        bool is_unshared = tensor->kind == GBNN_KIND_UNSHARED && tensor->tied_to == GBNN_NOT_TIED;
        left->values += tensor->size * (is_unshared ? UNSHARED_COST : 1);
        if (left->values > left->most) return GBNN_ERROR_TOO_LARGE;
    }
    left->entries += m->n_shared * ((uint64_t)m->bank.size + 1);
    return left->entries > left->most ? GBNN_ERROR_TOO_LARGE : GBNN_OK;
}

/* Numbers the tensors of each kind, and sums the bytes of the raw ones. */
static gbnn_code number_tensors(network *m, arena *memory) {
    m->numbers = arena_take(memory, m->manifest.count + 1, sizeof(uint32_t));
    m->raw_starts = arena_take(memory, m->manifest.count + 1, sizeof(size_t));
    m->shared = arena_take(memory, m->manifest.count + 1, sizeof(shared));
    m->vectors = arena_take(memory, m->manifest.count + 1, sizeof(vector));
    if (m->numbers == NULL || m->raw_starts == NULL || m->shared == NULL || m->vectors == NULL) return GBNN_ERROR_NO_MEMORY;
    for (size_t index = 0; index < m->manifest.count; index++) {
        const gbnn_tensor *tensor = &m->manifest.tensors[index];
        if (tensor->tied_to != GBNN_NOT_TIED) continue;
        if (tensor->kind == GBNN_KIND_SHARED) {
            m->numbers[index] = (uint32_t)m->n_shared;
            m->shared[m->n_shared++].tensor = index;
        } else if (tensor->kind == GBNN_KIND_UNSHARED) {
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
        if (!span_length(&rest, &words) || words > rest.size / 4) return GBNN_ERROR_STREAM;
        m->shared[index].words = span_take(&rest, 4 * (size_t)words);
    }
    return rest.size == 0 ? GBNN_OK : GBNN_ERROR_STREAM;
}

static gbnn_code start_ids(network *m) {
    stack_state stack = {0, 0};
    if (m->version == 2) TRY(split_streams(m));
    else if (m->ids.size % 4 != 0 || !stack_start(m->ids, &stack)) return GBNN_ERROR_STREAM;
    if (m->n_shared == 0) return check_end(m, stack, 0);
    m->shared[0].stack = stack;
    return GBNN_OK;
}

static gbnn_code inflate_raw(network *m, span stream, arena *memory) {
    uint64_t total = 0;
    size_t size = 0;
    for (size_t index = 0; index < m->manifest.count; index++) {
        const gbnn_tensor *tensor = &m->manifest.tensors[index];
        if (tensor->kind != GBNN_KIND_RAW || tensor->tied_to != GBNN_NOT_TIED) continue;
        m->raw_starts[index] = (size_t)total;
        total += tensor->size_bytes;
    }
    if (stream.size == 0) return total == 0 ? GBNN_OK : GBNN_ERROR_RAW;
    if (total > (uint64_t)stream.size * LARGEST_EXPANSION) return GBNN_ERROR_RAW;
    unsigned char *bytes = arena_take(memory, total + 1, 1);
    if (bytes == NULL) return GBNN_ERROR_NO_MEMORY;
    TRY(inflate_stream(stream, span_of(NULL, 0), bytes, (size_t)total + 1, &size));
    m->raw = span_of(bytes, size);
    return size == total ? GBNN_OK : GBNN_ERROR_RAW;
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
        return GBNN_ERROR_SECTIONS;
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
    if (file->networks == NULL) return GBNN_ERROR_NO_MEMORY;
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
    gbnn_code code = GBNN_ERROR_NO_MEMORY;
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

size_t gbnn_member_count(const gbnn_file *file) { return file->container.count; }

int gbnn_version(const gbnn_file *file, size_t member) {
    return member < file->container.count ? file->networks[member].version : 0;
}

size_t gbnn_tensor_count(const gbnn_file *file, size_t member) {
    return member < file->container.count ? file->networks[member].manifest.count : 0;
}

gbnn_tensor gbnn_describe(const gbnn_file *file, size_t member, size_t index) {
    static const gbnn_tensor none = {.tied_to = GBNN_NOT_TIED};
    return index < gbnn_tensor_count(file, member) ? file->networks[member].manifest.tensors[index] : none;
}
