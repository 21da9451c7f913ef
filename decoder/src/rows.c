/* The strings that describe tensors: `COUNT KIND SHAPE : DTYPE`, a space, and the rest of the name. */

#include "manifest.h"

#define MOST_DIMENSIONS 32
#define MOST_DIGITS 4300
#define LARGEST_SIZE ((uint64_t)1 << 48)

/* What a string says of a tensor besides its name. */
typedef struct {
    char kind;
    size_t dimensions;
    uint64_t *shape;
    gbnn_dtype dtype; /* GBNN_DTYPES if it is none that is known */
} description;

static bool is_digit(span text) { return text.size > 0 && text.data[0] >= '0' && text.data[0] <= '9'; }

static bool accept(span *text, char letter) {
    if (text->size == 0 || text->data[0] != (unsigned char)letter) return false;
    span_take(text, 1);
    return true;
}

/* Decimal digits, one at least; numbers of 2^48 and more are all the same. */
static bool read_number(span *text, uint64_t *number) {
    size_t digits = 0;
    *number = 0;
    for (; is_digit(*text); digits++) {
        uint64_t digit = (uint64_t)(*span_take(text, 1).data - '0');
        *number = *number >= LARGEST_SIZE ? LARGEST_SIZE : 10 * *number + digit;
    }
    return digits > 0 && digits <= MOST_DIGITS;
}

static bool read_dtype(span text, gbnn_dtype *dtype) {
    for (size_t index = 0; index < text.size; index++) {
        unsigned char letter = text.data[index];
        bool is_letter = letter >= 'a' && letter <= 'z', is_number = letter >= '0' && letter <= '9';
        if (!is_letter && !is_number && letter != '_') return false;
    }
    *dtype = 0;
    while (*dtype < GBNN_DTYPES && compare_texts(text, span_of(gbnn_dtype_name(*dtype), strlen(gbnn_dtype_name(*dtype))))) {
        *dtype = (gbnn_dtype)(*dtype + 1);
    }
    return text.size > 0;
}

/* `KIND SHAPE : DTYPE`, all of it. */
static gbnn_code read_description(span text, arena *memory, description *into) {
    uint64_t shape[MOST_DIMENSIONS], product = 1;
    into->kind = (char)*span_take(&text, 1).data;
    if (strchr("surt", into->kind) == NULL || into->kind == 0) return GBNN_ERROR_TENSORS;
    into->dimensions = 0;
    if (is_digit(text)) {
        do {
            if (into->dimensions == MOST_DIMENSIONS || !read_number(&text, &shape[into->dimensions])) return GBNN_ERROR_TENSORS;
            uint64_t size = shape[into->dimensions++];
            if (size > 1 && product > (LARGEST_SIZE - 1) / size) return GBNN_ERROR_TENSORS;
            if (size > 1) product *= size;
        } while (accept(&text, ','));
    }
    if (!accept(&text, ':') || !read_dtype(text, &into->dtype)) return GBNN_ERROR_TENSORS;
    into->shape = arena_take(memory, into->dimensions + 1, sizeof(uint64_t));
    if (into->shape == NULL) return GBNN_ERROR_NO_MEMORY;
    memcpy(into->shape, shape, into->dimensions * sizeof(uint64_t));
    return GBNN_OK;
}

/* Bytes of the first count parts of a name, without the dot behind them; SIZE_MAX if it has fewer. */
static size_t start_of_name(const gbnn_tensor *before, uint64_t count) {
    if (before == NULL || count == 0) return count == 0 ? 0 : SIZE_MAX;
    for (size_t index = 0; index < before->name_bytes; index++) {
        if (before->name[index] == '.' && --count == 0) return index;
    }
    return count == 1 ? before->name_bytes : SIZE_MAX;
}

static uint64_t characters_of(const char *name, size_t size) {
    uint64_t count = 0;
    for (size_t index = 0; index < size; index++) count += ((unsigned char)name[index] & 0xC0) != 0x80;
    return count;
}

static gbnn_code read_name(const gbnn_tensor *before, uint64_t count, span rest, arena *memory, gbnn_tensor *into) {
    size_t start = start_of_name(before, count);
    if (start == SIZE_MAX) return GBNN_ERROR_TENSORS;
    size_t dot = count > 0;
    char *name = arena_take(memory, (uint64_t)start + dot + rest.size + 1, 1);
    if (name == NULL) return GBNN_ERROR_NO_MEMORY;
    if (start > 0) memcpy(name, before->name, start);
    if (dot) name[start] = '.';
    if (rest.size > 0) memcpy(name + start + dot, rest.data, rest.size);
    into->name = name;
    into->name_bytes = start + dot + rest.size;
    return GBNN_OK;
}

static gbnn_code describe(const description *as, gbnn_tensor *into) {
    bool is_coded = as->kind == 's' || as->kind == 'u';
    bool is_floating = as->dtype == GBNN_FLOAT16 || as->dtype == GBNN_BFLOAT16 || as->dtype == GBNN_FLOAT32 ||
                       as->dtype == GBNN_FLOAT64;
    into->kind = as->kind == 's' ? GBNN_KIND_SHARED : as->kind == 'u' ? GBNN_KIND_UNSHARED : GBNN_KIND_RAW;
    into->dtype = as->dtype;
    into->dimensions = as->dimensions;
    into->shape = as->shape;
    into->tied_to = GBNN_NOT_TIED;
    into->size = 1;
    for (size_t index = 0; index < as->dimensions; index++) into->size *= as->shape[index];
    into->size_bytes = into->size * gbnn_dtype_bytes(as->dtype);
    if (is_coded && (!is_floating || into->size == 0)) return GBNN_ERROR_TENSORS;
    if (as->kind == 's' && as->dimensions < 2) return GBNN_ERROR_TENSORS;
    if (as->kind == 'r' && as->dtype == GBNN_DTYPES) return GBNN_ERROR_TENSORS;
    return GBNN_OK;
}

static gbnn_code read_row(span row, arena *memory, description *as, const gbnn_tensor *before, gbnn_tensor *into) {
    const unsigned char *space = row.size > 0 ? memchr(row.data, ' ', row.size) : NULL;
    uint64_t count;
    if (space == NULL) return GBNN_ERROR_TENSORS;
    span head = span_take(&row, (size_t)(space - row.data));
    span_take(&row, 1);
    if (!read_number(&head, &count)) return GBNN_ERROR_TENSORS;
    if (head.size > 0) TRY(read_description(head, memory, as));
    else if (before == NULL) return GBNN_ERROR_TENSORS;
    TRY(read_name(before, count, row, memory, into));
    return describe(as, into);
}

static span name_of(const gbnn_tensor *tensor) { return span_of(tensor->name, tensor->name_bytes); }

static int compare_names(const void *context, uint32_t a, uint32_t b) {
    const gbnn_tensor *tensors = context;
    return compare_texts(name_of(&tensors[a]), name_of(&tensors[b]));
}

static gbnn_code sort_names(arena *memory, manifest *into) {
    into->by_name = arena_take(memory, into->count + 1, sizeof(uint32_t));
    if (into->by_name == NULL) return GBNN_ERROR_NO_MEMORY;
    for (uint32_t index = 0; index < into->count; index++) into->by_name[index] = index;
    sort_numbers(into->by_name, into->count, compare_names, into->tensors);
    for (size_t index = 1; index < into->count; index++) {
        if (compare_names(into->tensors, into->by_name[index - 1], into->by_name[index]) == 0) return GBNN_ERROR_TENSORS;
    }
    return GBNN_OK;
}

/* Order of a text and of another in two parts. */
static int compare_parts(span text, span start, span end) {
    if (text.size <= start.size) {
        int order = compare_texts(text, start);
        return order != 0 ? order : end.size > 0 ? -1 : 0;
    }
    int order = compare_texts(span_of(text.data, start.size), start);
    return order != 0 ? order : compare_texts(span_of(text.data + start.size, text.size - start.size), end);
}

size_t manifest_find(const manifest *in, span start, span end) {
    size_t low = 0, high = in->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = compare_parts(name_of(&in->tensors[in->by_name[middle]]), start, end);
        if (order == 0) return in->by_name[middle];
        if (order < 0) low = middle + 1;
        else high = middle;
    }
    return SIZE_MAX;
}

/* Ties each tensor that the ties name to an earlier one. Those of kind t must be tied, and no others may be. */
static gbnn_code tie(const json *text, uint32_t ties, const char *kinds, manifest *into) {
    const json_node *nodes = text->nodes;
    for (uint32_t key = ties + 1; key < nodes[ties].next; key = nodes[key + 1].next) {
        if (nodes[key].dead) continue;
        if (nodes[key + 1].kind != JSON_STRING) return GBNN_ERROR_TENSORS;
        size_t tied = manifest_find(into, json_text(text, key), span_of(NULL, 0));
        size_t target = manifest_find(into, json_text(text, key + 1), span_of(NULL, 0));
        if (tied != SIZE_MAX && target < tied) into->tensors[tied].tied_to = target;
    }
    for (size_t index = 0; index < into->count; index++) {
        gbnn_tensor *tensor = &into->tensors[index];
        if ((kinds[index] == 't') != (tensor->tied_to != GBNN_NOT_TIED)) return GBNN_ERROR_TENSORS;
    }
    return GBNN_OK;
}

static bool is_reserved(const gbnn_tensor *tensor) {
    return compare_texts(name_of(tensor), span_of("__metadata__", 12)) == 0;
}

gbnn_code rows_read(const json *text, uint32_t rows, uint32_t ties, uint64_t *characters, arena *memory,
                    manifest *into) {
    description as = {0, 0, NULL, GBNN_DTYPES};
    into->count = text->nodes[rows].length;
    into->tensors = arena_take(memory, into->count + 1, sizeof(gbnn_tensor));
    char *kinds = arena_take(memory, into->count + 1, 1);
    if (into->tensors == NULL || kinds == NULL) return GBNN_ERROR_NO_MEMORY;
    uint32_t row = rows + 1;
    for (size_t index = 0; index < into->count; index++, row = text->nodes[row].next) {
        gbnn_tensor *tensor = &into->tensors[index];
        if (text->nodes[row].kind != JSON_STRING || text->nodes[row].broken) return GBNN_ERROR_TENSORS;
        TRY(read_row(json_text(text, row), memory, &as, index > 0 ? tensor - 1 : NULL, tensor));
        uint64_t here = characters_of(tensor->name, tensor->name_bytes);
        if (here > *characters || is_reserved(tensor)) return GBNN_ERROR_TENSORS;
        *characters -= here;
        kinds[index] = as.kind;
    }
    TRY(sort_names(memory, into));
    return tie(text, ties, kinds, into);
}
