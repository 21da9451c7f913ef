#include "json.h"

#define DEEPEST 900
#define MOST_DIGITS 4300

typedef struct {
    json *into;
    const unsigned char *text;
    size_t size, place;
    uint32_t count;
    uint32_t *keys;
} parser;

static bool at(const parser *from, unsigned char letter) {
    return from->place < from->size && from->text[from->place] == letter;
}

static bool accept(parser *from, unsigned char letter) {
    if (!at(from, letter)) return false;
    from->place++;
    return true;
}

static bool is_digit(const parser *from) {
    return from->place < from->size && from->text[from->place] >= '0' && from->text[from->place] <= '9';
}

static void skip_spaces(parser *from) {
    while (at(from, ' ') || at(from, '\n') || at(from, '\r') || at(from, '\t')) from->place++;
}

static uint32_t add(parser *from, json_kind kind) {
    json_node *node = &from->into->nodes[from->count];
    node->kind = (uint8_t)kind;
    node->begin = (uint32_t)from->place;
    return from->count++;
}

static size_t digits(parser *from) {
    size_t start = from->place;
    while (is_digit(from)) from->place++;
    return from->place - start;
}

static bool number(parser *from, uint32_t node) {
    size_t start = from->place;
    from->into->nodes[node].kind = JSON_INTEGER;
    accept(from, '-');
    if (!accept(from, '0')) {
        size_t count = digits(from);
        if (count == 0) return false;
        if (count > MOST_DIGITS) from->into->nodes[node].broken = true;
    }
    size_t whole = from->place;
    if (accept(from, '.') && digits(from) == 0) return false;
    if (accept(from, 'e') || accept(from, 'E')) {
        if (!accept(from, '+')) accept(from, '-');
        if (digits(from) == 0) return false;
    }
    if (from->place > whole) from->into->nodes[node].kind = JSON_FLOAT;
    else if (from->into->nodes[node].broken) return false; /* more digits than Python's int takes */
    from->into->nodes[node].broken = false;
    from->into->nodes[node].length = (uint32_t)(from->place - start);
    return true;
}

static bool word(parser *from, uint32_t node, const char *letters, json_kind kind) {
    size_t length = strlen(letters);
    if (length > from->size - from->place || memcmp(from->text + from->place, letters, length) != 0) return false;
    from->place += length;
    from->into->nodes[node].kind = (uint8_t)kind;
    from->into->nodes[node].length = (uint32_t)length;
    return true;
}

static bool hexadecimal(parser *from, uint32_t *unit) {
    *unit = 0;
    for (int index = 0; index < 4; index++, from->place++) {
        if (from->place >= from->size) return false;
        unsigned char letter = from->text[from->place];
        unsigned digit;
        if (letter >= '0' && letter <= '9') digit = letter - (unsigned)'0';
        else if (letter >= 'a' && letter <= 'f') digit = letter - (unsigned)'a' + 10;
        else if (letter >= 'A' && letter <= 'F') digit = letter - (unsigned)'A' + 10;
        else return false;
        *unit = *unit << 4 | digit;
    }
    return true;
}

/* Appends a character to the decoded text, which never is longer than what was read. */
static void append(unsigned char *text, size_t *stop, uint32_t character) {
    if (character < 0x80) {
        text[(*stop)++] = (unsigned char)character;
    } else if (character < 0x800) {
        text[(*stop)++] = (unsigned char)(0xC0 | character >> 6);
        text[(*stop)++] = (unsigned char)(0x80 | (character & 63));
    } else if (character < 0x10000) {
        text[(*stop)++] = (unsigned char)(0xE0 | character >> 12);
        text[(*stop)++] = (unsigned char)(0x80 | (character >> 6 & 63));
        text[(*stop)++] = (unsigned char)(0x80 | (character & 63));
    } else {
        text[(*stop)++] = (unsigned char)(0xF0 | character >> 18);
        text[(*stop)++] = (unsigned char)(0x80 | (character >> 12 & 63));
        text[(*stop)++] = (unsigned char)(0x80 | (character >> 6 & 63));
        text[(*stop)++] = (unsigned char)(0x80 | (character & 63));
    }
}

/* What follows `\u`: one unit, or a pair of surrogates. */
static bool unit_escape(parser *from, size_t *stop, bool *broken) {
    uint32_t character, low;
    if (!hexadecimal(from, &character)) return false;
    if (character >= 0xD800 && character < 0xDC00 && at(from, '\\')) {
        size_t before = from->place++;
        if (accept(from, 'u')) {
            if (!hexadecimal(from, &low)) return false;
            if (low >= 0xDC00 && low < 0xE000) {
                append(from->into->text, stop, 0x10000 + ((character & 1023) << 10 | (low & 1023)));
                return true;
            }
        }
        from->place = before; /* what follows is read by itself */
    }
    if (character >= 0xD800 && character < 0xE000) *broken = true;
    append(from->into->text, stop, character);
    return true;
}

static bool escape(parser *from, size_t *stop, bool *broken) {
    static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    if (accept(from, 'u')) return unit_escape(from, stop, broken);
    if (from->place >= from->size || from->text[from->place] == 0) return false;
    const char *found = strchr(letters, from->text[from->place]);
    if (found == NULL) return false;
    from->place++;
    from->into->text[(*stop)++] = (unsigned char)meanings[found - letters];
    return true;
}

/* A string, from its first quotation mark. */
static bool string(parser *from, uint32_t node) {
    if (!accept(from, '"')) return false;
    size_t begin = from->place, stop = begin;
    bool broken = false;
    while (from->place < from->size) {
        unsigned char letter = from->text[from->place++];
        if (letter == '"') {
            from->into->nodes[node].begin = (uint32_t)begin;
            from->into->nodes[node].length = (uint32_t)(stop - begin);
            from->into->nodes[node].broken = broken;
            return true;
        }
        if (letter < 32) return false;
        if (letter != '\\') from->into->text[stop++] = letter;
        else if (!escape(from, &stop, &broken)) return false;
    }
    return false;
}

static bool scalar(parser *from, uint32_t node) {
    if (from->place >= from->size) return false;
    switch (from->text[from->place]) {
    case '"': from->into->nodes[node].kind = JSON_STRING; return string(from, node);
    case 'n': return word(from, node, "null", JSON_NULL);
    case 't': return word(from, node, "true", JSON_TRUE);
    case 'f': return word(from, node, "false", JSON_FALSE);
    case 'N': return word(from, node, "NaN", JSON_FLOAT);
    case 'I': return word(from, node, "Infinity", JSON_FLOAT);
    case '-':
        if (word(from, node, "-Infinity", JSON_FLOAT)) return true;
        break;
    default: break;
    }
    return number(from, node);
}

static int compare_keys(const void *context, uint32_t a, uint32_t b) {
    int order = compare_texts(json_text(context, a), json_text(context, b));
    return order != 0 ? order : a < b ? -1 : 1;
}

/* Of equal keys of an object, marks all but the last as dead. */
static void mark_dead_keys(parser *from, uint32_t object) {
    json_node *nodes = from->into->nodes;
    uint32_t count = 0;
    for (uint32_t key = object + 1; key < nodes[object].next; key = nodes[key + 1].next) from->keys[count++] = key;
    if (count < 2) return;
    sort_numbers(from->keys, count, compare_keys, from->into);
    for (uint32_t index = 1; index < count; index++) {
        uint32_t before = from->keys[index - 1];
        nodes[before].dead = compare_texts(json_text(from->into, before), json_text(from->into, from->keys[index])) == 0;
    }
}

static bool key(parser *from) {
    skip_spaces(from);
    uint32_t node = add(from, JSON_STRING);
    if (!string(from, node)) return false;
    from->into->nodes[node].next = node + 1;
    skip_spaces(from);
    return accept(from, ':');
}

/* Starts a value. Containers that have a first element are opened; the others are complete. */
static bool value(parser *from, bool *opened) {
    skip_spaces(from);
    uint32_t node = add(from, JSON_NULL);
    json_node *at_node = &from->into->nodes[node];
    at_node->next = node + 1;
    *opened = false;
    if (!at(from, '[') && !at(from, '{')) return scalar(from, node);
    bool is_array = from->text[from->place++] == '[';
    at_node->kind = is_array ? JSON_ARRAY : JSON_OBJECT;
    skip_spaces(from);
    if (accept(from, is_array ? ']' : '}')) return true;
    *opened = true;
    return is_array || key(from);
}

/* A value with all that it holds, without recursion. */
static bool document(parser *from) {
    uint32_t open[DEEPEST];
    size_t depth = 0;
    for (;;) {
        uint32_t node = from->count;
        bool opened;
        if (!value(from, &opened)) return false;
        if (opened) {
            if (depth == DEEPEST) return false;
            open[depth++] = node;
            continue;
        }
        /* A value is complete, and with it perhaps containers. */
        for (;;) {
            if (depth == 0) return true;
            uint32_t container = open[depth - 1];
            json_node *holder = &from->into->nodes[container];
            holder->length++;
            skip_spaces(from);
            if (accept(from, ',')) {
                if (holder->kind == JSON_OBJECT && !key(from)) return false;
                break;
            }
            if (!accept(from, holder->kind == JSON_ARRAY ? ']' : '}')) return false;
            holder->next = from->count;
            if (holder->kind == JSON_OBJECT) mark_dead_keys(from, container);
            depth--;
        }
    }
}

/* Whether bytes are UTF-8, without surrogates and without characters that are longer than they need be. */
static bool is_utf8(const unsigned char *text, size_t size) {
    for (size_t place = 0; place < size;) {
        unsigned char first = text[place++];
        if (first < 0x80) continue;
        size_t more = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : 1;
        if (first < 0xC2 || first > 0xF4 || more > size - place) return false;
        uint32_t character = first & (0x3Fu >> more);
        for (size_t index = 0; index < more; index++) {
            if ((text[place] & 0xC0) != 0x80) return false;
            character = character << 6 | (text[place++] & 63u);
        }
        if (more == 2 && (character < 0x800 || (character >= 0xD800 && character < 0xE000))) return false;
        if (more == 3 && (character < 0x10000 || character > 0x10FFFF)) return false;
    }
    return true;
}

gbnn_code json_parse(json *into, arena *memory, unsigned char *text, size_t size) {
    if (size > UINT32_MAX / 2 || !is_utf8(text, size)) return GBNN_ERROR_JSON;
    /* A node is the first one, the first of a container, or follows a comma or a colon. */
    uint64_t most = 1;
    for (size_t index = 0; index < size; index++) {
        unsigned char letter = text[index];
        most += letter == '[' || letter == '{' || letter == ',' || letter == ':';
    }
    parser from = {into, text, size, 0, 0, arena_take(memory, most, sizeof(uint32_t))};
    into->text = text;
    into->nodes = arena_take(memory, most + 1, sizeof(json_node));
    if (into->nodes == NULL || from.keys == NULL) return GBNN_ERROR_NO_MEMORY;
    if (!document(&from)) return GBNN_ERROR_JSON;
    skip_spaces(&from);
    return from.place == size ? GBNN_OK : GBNN_ERROR_JSON;
}

uint32_t json_find(const json *in, uint32_t object, const char *key) {
    const json_node *nodes = in->nodes;
    for (uint32_t node = object + 1; node < nodes[object].next; node = nodes[node + 1].next) {
        if (!nodes[node].dead && json_equals(in, node, key)) return node + 1;
    }
    return 0;
}

uint32_t json_keys(const json *in, uint32_t object) {
    uint32_t count = 0;
    for (uint32_t node = object + 1; node < in->nodes[object].next; node = in->nodes[node + 1].next) {
        count += !in->nodes[node].dead;
    }
    return count;
}

bool json_equals(const json *in, uint32_t node, const char *text) {
    return compare_texts(json_text(in, node), span_of(text, strlen(text))) == 0;
}

/* An object's keys are nodes like others, so a dead one takes its value with it only if both are skipped. */
bool json_is_unicode(const json *in, uint32_t node) {
    uint32_t stop = in->nodes[node].next;
    while (node < stop) {
        if (in->nodes[node].dead) {
            node = in->nodes[node + 1].next;
            continue;
        }
        if (in->nodes[node].broken) return false;
        node++;
    }
    return true;
}

int compare_texts(span a, span b) {
    size_t common = a.size < b.size ? a.size : b.size;
    int order = common > 0 ? memcmp(a.data, b.data, common) : 0;
    return order != 0 ? order : a.size < b.size ? -1 : a.size > b.size;
}

static void sift(uint32_t *heap, size_t root, size_t count, compare_numbers compare, const void *context) {
    for (;;) {
        size_t child = 2 * root + 1;
        if (child >= count) return;
        if (child + 1 < count && compare(context, heap[child], heap[child + 1]) < 0) child++;
        if (compare(context, heap[root], heap[child]) >= 0) return;
        uint32_t moved = heap[root];
        heap[root] = heap[child];
        heap[child] = moved;
        root = child;
    }
}

void sort_numbers(uint32_t *numbers, size_t count, compare_numbers compare, const void *context) {
    for (size_t root = count / 2; root-- > 0;) sift(numbers, root, count, compare, context);
    for (size_t last = count; last-- > 1;) {
        uint32_t moved = numbers[0];
        numbers[0] = numbers[last];
        numbers[last] = moved;
        sift(numbers, 0, last, compare, context);
    }
}
