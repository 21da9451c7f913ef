#include "container.h"

#include "json.h"

#define MOST_HEADER_BYTES ((uint64_t)1 << 20)
#define DEEPEST_HEADER 127

static const uint8_t ORDERS[2][N_SECTIONS] = {
    {MANIFEST, BANK, MAPS, OUTLIERS, VALUES},
    {MANIFEST, BANK, VALUES, OUTLIERS, MAPS},
};

/* safetensors reads headers more strictly than Python reads JSON: numbers are finite, and no half surrogate pairs. */
static bool is_strict(const json *header) {
    uint32_t depth = 0, stops[DEEPEST_HEADER];
    for (uint32_t node = 0; node < header->nodes[0].next; node++) {
        const json_node *at = &header->nodes[node];
        while (depth > 0 && node >= stops[depth - 1]) depth--;
        if (at->broken) return false;
        if (at->kind == JSON_FLOAT) {
            span text = json_text(header, node);
            unsigned char last = text.data[text.size - 1];
            if (last == 'N' || last == 'y') return false;
        }
        if (at->kind >= JSON_ARRAY) {
            if (depth == DEEPEST_HEADER) return false;
            stops[depth++] = at->next;
        }
    }
    return true;
}

/* A whole number below 2^62, without sign. */
static bool whole(const json *header, uint32_t node, uint64_t *number) {
    if (header->nodes[node].kind != JSON_INTEGER) return false;
    span text = json_text(header, node);
    *number = 0;
    for (size_t index = 0; index < text.size; index++) {
        if (text.data[index] == '-' || *number >> 58 != 0) return false;
        *number = 10 * *number + (uint64_t)(text.data[index] - '0');
    }
    return true;
}

/* The number of an entry that must occur once. */
static uint32_t once(const json *header, uint32_t object, const char *key) {
    uint32_t found = json_find(header, object, key), count = 0;
    for (uint32_t node = object + 1; node < header->nodes[object].next; node = header->nodes[node + 1].next) {
        count += json_equals(header, node, key);
    }
    return count == 1 ? found : 0;
}

/* Reads the place of a tensor of bytes. */
static bool is_bytes(const json *header, uint32_t tensor, uint64_t *begin, uint64_t *stop) {
    const json_node *nodes = header->nodes;
    if (nodes[tensor].kind != JSON_OBJECT) return false;
    uint32_t dtype = once(header, tensor, "dtype"), shape = once(header, tensor, "shape");
    uint32_t offsets = once(header, tensor, "data_offsets");
    if (dtype == 0 || nodes[dtype].kind != JSON_STRING || !json_equals(header, dtype, "U8")) return false;
    if (shape == 0 || nodes[shape].kind != JSON_ARRAY || nodes[shape].length != 1) return false;
    if (offsets == 0 || nodes[offsets].kind != JSON_ARRAY || nodes[offsets].length != 2) return false;
    uint64_t size;
    if (!whole(header, shape + 1, &size)) return false;
    if (!whole(header, offsets + 1, begin) || !whole(header, offsets + 2, stop)) return false;
    return *stop >= *begin && *stop - *begin == size;
}

/* The versions of the members: of a single file its own. */
static gbnn_code read_versions(const json *header, uint32_t metadata, container *into, bool *is_single) {
    uint32_t version = json_find(header, metadata, "gbnn-compress"), members = json_find(header, metadata, "members");
    if (version == 0) return GBNN_ERROR_NOT_AN_ARTIFACT;
    bool is_second = json_equals(header, version, "2");
    if (!is_second && !json_equals(header, version, "1")) return GBNN_ERROR_VERSION;
    *is_single = members == 0;
    if (*is_single) {
        into->count = 1;
        into->members[0].version = is_second ? 2 : 1;
        return GBNN_OK;
    }
    span list = json_text(header, members);
    into->count = (list.size + 1) / 2;
    if (!is_second || list.size % 2 == 0 || into->count < 2 || into->count > MOST_MEMBERS) return GBNN_ERROR_HEADER;
    for (size_t index = 0; index < list.size; index++) {
        unsigned char letter = list.data[index];
        if (index % 2 == 1 ? letter != ',' : letter != '1' && letter != '2') return GBNN_ERROR_HEADER;
        if (index % 2 == 0) into->members[index / 2].version = letter - '0';
    }
    return GBNN_OK;
}

/* Name of a member's tensor. */
static const char *name_of(size_t member, bool is_single, char name[8]) {
    memcpy(name, "data.", 5);
    size_t stop = is_single ? 4 : 5;
    if (!is_single && member >= 10) name[stop++] = (char)('0' + member / 10);
    if (!is_single) name[stop++] = (char)('0' + member % 10);
    name[stop] = 0;
    return name;
}

static gbnn_code read_header(const json *header, span data, container *into) {
    const json_node *nodes = header->nodes;
    if (nodes[0].kind != JSON_OBJECT || !is_strict(header)) return GBNN_ERROR_NOT_SAFETENSORS;
    uint32_t metadata = json_find(header, 0, "__metadata__");
    if (metadata == 0 || nodes[metadata].kind == JSON_NULL) return GBNN_ERROR_NOT_AN_ARTIFACT;
    if (nodes[metadata].kind != JSON_OBJECT || once(header, 0, "__metadata__") == 0) return GBNN_ERROR_NOT_SAFETENSORS;
    for (uint32_t node = metadata + 1; node < nodes[metadata].next; node = nodes[node + 1].next) {
        if (nodes[node + 1].kind != JSON_STRING) return GBNN_ERROR_NOT_SAFETENSORS;
    }
    bool is_single;
    TRY(read_versions(header, metadata, into, &is_single));
    if (json_keys(header, 0) != into->count + 1) return GBNN_ERROR_HEADER;
    uint64_t place = 0;
    for (size_t member = 0; member < into->count; member++) {
        char name[8];
        uint64_t begin, stop;
        uint32_t tensor = json_find(header, 0, name_of(member, is_single, name));
        if (tensor == 0 || !is_bytes(header, tensor, &begin, &stop)) return GBNN_ERROR_HEADER;
        if (begin != place || stop > data.size) return GBNN_ERROR_HEADER;
        into->members[member].data = span_of(data.data + begin, (size_t)(stop - begin));
        place = stop;
    }
    return place == data.size ? GBNN_OK : GBNN_ERROR_HEADER;
}

gbnn_code container_open(span file, container *into) {
    if (file.size < 8) return GBNN_ERROR_NOT_SAFETENSORS;
    uint64_t size = load64(span_take(&file, 8).data);
    if (size == 0 || size > MOST_HEADER_BYTES || size > file.size) return GBNN_ERROR_NOT_SAFETENSORS;
    span text = span_take(&file, (size_t)size);
    arena memory = {NULL};
    json header;
    unsigned char *copy = arena_take(&memory, size, 1);
    gbnn_code code = GBNN_ERROR_NO_MEMORY;
    if (copy != NULL) {
        memcpy(copy, text.data, text.size);
        code = copy[0] == '{' ? json_parse(&header, &memory, copy, text.size) : GBNN_ERROR_JSON;
        if (code == GBNN_OK) code = read_header(&header, file, into);
        if (code == GBNN_ERROR_JSON) code = GBNN_ERROR_NOT_SAFETENSORS;
    }
    arena_free(&memory);
    return code;
}

gbnn_code container_sections(const container_member *member, span sections[N_SECTIONS]) {
    const uint8_t *order = ORDERS[member->version - 1];
    span rest = member->data;
    uint64_t lengths[N_SECTIONS], total = 0;
    uint32_t checksums[N_SECTIONS] = {0};
    for (int index = 0; index < N_SECTIONS; index++) {
        if (!span_length(&rest, &lengths[index])) return GBNN_ERROR_SECTIONS;
        if (lengths[index] > member->data.size) return GBNN_ERROR_SECTIONS;
        total += lengths[index];
        if (lengths[index] == 0) continue;
        if (rest.size < 4) return GBNN_ERROR_SECTIONS;
        checksums[index] = load32(span_take(&rest, 4).data);
    }
    if (total != rest.size) return GBNN_ERROR_SECTIONS;
    for (int index = 0; index < N_SECTIONS; index++) {
        span section = span_take(&rest, (size_t)lengths[index]);
        if (section.size > 0 && crc32_of(section) != checksums[index]) return GBNN_ERROR_CHECKSUM;
        sections[order[index]] = section;
    }
    return GBNN_OK;
}
