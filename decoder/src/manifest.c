#include "manifest.h"

#include "inflate.h"

#define DIGEST_BYTES 32

/* The last bytes of the dictionary and then this text. */
static gbnn_code follow(span dictionary, span text, arena *memory, span *following) {
    size_t before = text.size < DEFLATE_WINDOW ? DEFLATE_WINDOW - text.size : 0;
    if (before > dictionary.size) before = dictionary.size;
    size_t here = text.size < DEFLATE_WINDOW ? text.size : DEFLATE_WINDOW;
    unsigned char *bytes = arena_take(memory, before + here, 1);
    if (bytes == NULL) return GBNN_ERROR_NO_MEMORY;
    memcpy(bytes, dictionary.data + dictionary.size - before, before);
    memcpy(bytes + before, text.data + text.size - here, here);
    *following = span_of(bytes, before + here);
    return GBNN_OK;
}

static gbnn_code read_text(unsigned char *bytes, size_t size, uint64_t *characters, arena *scratch, arena *memory,
                           manifest *into) {
    json text;
    TRY(json_parse(&text, scratch, bytes, size));
    if (text.nodes[0].kind != JSON_OBJECT) return GBNN_ERROR_JSON;
    uint32_t rows = json_find(&text, 0, "tensors"), ties = json_find(&text, 0, "ties");
    if (rows == 0 || text.nodes[rows].kind != JSON_ARRAY) return GBNN_ERROR_TENSORS;
    if (ties == 0 || text.nodes[ties].kind != JSON_OBJECT) return GBNN_ERROR_TENSORS;
    TRY(rows_read(&text, rows, ties, characters, memory, into));
    return facts_hold(&text, &into->noise) ? GBNN_OK : GBNN_ERROR_FACTS;
}

gbnn_code manifest_read(span section, manifest_budget *left, span dictionary, arena *memory, manifest *into,
                        span *following) {
    if (section.size < DIGEST_BYTES) return GBNN_ERROR_DEFLATE;
    span_take(&section, DIGEST_BYTES);
    uint64_t room = (uint64_t)section.size * LARGEST_EXPANSION;
    if (room > left->json_bytes) room = left->json_bytes;
    arena scratch = {NULL};
    unsigned char *bytes = arena_take(&scratch, room + 1, 1);
    size_t size = 0;
    gbnn_code code = bytes == NULL ? GBNN_ERROR_NO_MEMORY : GBNN_OK;
    if (code == GBNN_OK) code = inflate_stream(section, dictionary, bytes, (size_t)room + 1, &size);
    if (code == GBNN_OK && size > room) code = GBNN_ERROR_DEFLATE;
    if (code == GBNN_OK) left->json_bytes -= size;
    if (code == GBNN_OK && following != NULL) code = follow(dictionary, span_of(bytes, size), memory, following);
    if (code == GBNN_OK) code = read_text(bytes, size, &left->name_characters, &scratch, memory, into);
    arena_free(&scratch);
    return code;
}
