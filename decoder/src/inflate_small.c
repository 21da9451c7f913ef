/* A small inflate for WebAssembly. It accepts and refuses what zlib does. */

#include "inflate.h"

#define LONGEST_CODE 15
#define MOST_LITERALS 286
#define MOST_DISTANCES 30
#define LENGTH_CODES 19

typedef struct {
    span from;
    uint32_t held;  /* bits that were read and not used, the first lowest */
    unsigned count; /* of these bits */
    span dictionary;
    unsigned char *to;
    size_t room, size;
    bool failed;
} inflater;

/* A Huffman code: how many words of each length, and the symbols in the order of their words. */
typedef struct {
    uint16_t counts[LONGEST_CODE + 1];
    uint16_t symbols[MOST_LITERALS + 2];
} code;

static uint32_t bits(inflater *in, unsigned width) {
    while (in->count < width) {
        if (in->from.size == 0) {
            in->failed = true;
            return 0;
        }
        in->held |= (uint32_t)*span_take(&in->from, 1).data << in->count;
        in->count += 8;
    }
    uint32_t result = in->held & ((1u << width) - 1);
    in->held >>= width;
    in->count -= width;
    return result;
}

/* False if the lengths are those of no code. Codes with words to spare are allowed if they have one word of one bit, or
 * none. */
static bool make(code *into, const uint8_t *lengths, unsigned count, bool may_be_short) {
    uint16_t places[LONGEST_CODE + 1];
    memset(into->counts, 0, sizeof into->counts);
    for (unsigned symbol = 0; symbol < count; symbol++) into->counts[lengths[symbol]]++;
    unsigned words = count - into->counts[0];
    int left = 1;
    for (unsigned length = 1; length <= LONGEST_CODE; length++) {
        left = 2 * left - into->counts[length];
        if (left < 0) return false;
    }
    if (left > 0 && words > 0 && !(may_be_short && words == 1 && into->counts[1] == 1)) return false;
    places[1] = 0;
    for (unsigned length = 1; length < LONGEST_CODE; length++) {
        places[length + 1] = (uint16_t)(places[length] + into->counts[length]);
    }
    for (unsigned symbol = 0; symbol < count; symbol++) {
        if (lengths[symbol] != 0) into->symbols[places[lengths[symbol]]++] = (uint16_t)symbol;
    }
    into->counts[0] = 0;
    return true;
}

static unsigned symbol(inflater *in, const code *of) {
    int word = 0, first = 0, index = 0;
    for (unsigned length = 1; length <= LONGEST_CODE && !in->failed; length++) {
        word |= (int)bits(in, 1);
        int count = of->counts[length];
        if (word - count < first) return of->symbols[index + (word - first)];
        index += count;
        first = 2 * (first + count);
        word *= 2;
    }
    in->failed = true;
    return 0;
}

static void put(inflater *in, unsigned char byte) {
    if (in->size < in->room) in->to[in->size++] = byte;
    else in->failed = true;
}

static void copy(inflater *in, size_t length, size_t distance) {
    if (distance > in->size + in->dictionary.size) in->failed = true;
    for (; length > 0 && !in->failed; length--) {
        bool is_before = distance > in->size;
        put(in, is_before ? in->dictionary.data[in->dictionary.size + in->size - distance] : in->to[in->size - distance]);
    }
}

static void compressed(inflater *in, const code *literals, const code *distances) {
    while (!in->failed) {
        unsigned next = symbol(in, literals);
        if (in->failed || next == 256) return;
        if (next < 256) {
            put(in, (unsigned char)next);
            continue;
        }
        next -= 257;
        if (next > 28) {
            in->failed = true;
            return;
        }
        size_t length = next + 3;
        if (next == 28) {
            length = 258;
        } else if (next >= 8) {
            unsigned extra = next / 4 - 1;
            length = 3 + ((4 + next % 4) << extra) + bits(in, extra);
        }
        unsigned far = symbol(in, distances);
        if (far >= MOST_DISTANCES) in->failed = true;
        if (in->failed) return;
        size_t distance = far + 1;
        if (far >= 4) {
            unsigned extra = far / 2 - 1;
            distance = 1 + ((2 + far % 2) << extra) + bits(in, extra);
        }
        if (!in->failed) copy(in, length, distance);
    }
}

static void stored(inflater *in) {
    in->held = in->count = 0;
    if (in->from.size < 4) {
        in->failed = true;
        return;
    }
    size_t length = load16(in->from.data), inverted = load16(in->from.data + 2);
    span_take(&in->from, 4);
    if (length != (inverted ^ 0xFFFF) || length > in->from.size || length > in->room - in->size) {
        in->failed = true;
        return;
    }
    memcpy(in->to + in->size, span_take(&in->from, length).data, length);
    in->size += length;
}

static void fixed(inflater *in) {
    uint8_t lengths[MOST_LITERALS + 2];
    code literals, distances;
    for (unsigned index = 0; index < MOST_LITERALS + 2; index++) {
        lengths[index] = (uint8_t)(index < 144 ? 8 : index < 256 ? 9 : index < 280 ? 7 : 8);
    }
    make(&literals, lengths, MOST_LITERALS + 2, false);
    memset(lengths, 5, 32);
    make(&distances, lengths, 32, false);
    compressed(in, &literals, &distances);
}

/* Lengths of the words of both codes, themselves coded. */
static void read_lengths(inflater *in, const code *of, uint8_t *lengths, unsigned count) {
    unsigned index = 0;
    while (index < count && !in->failed) {
        unsigned next = symbol(in, of), repeats = 1;
        uint8_t repeated = (uint8_t)next;
        if (next >= 16) {
            if (next == 16 && index == 0) in->failed = true;
            if (in->failed) return;
            repeated = next == 16 ? lengths[index - 1] : 0;
            repeats = next == 16 ? 3 + bits(in, 2) : next == 17 ? 3 + bits(in, 3) : 11 + bits(in, 7);
        }
        if (repeats > count - index) in->failed = true;
        for (; repeats > 0 && !in->failed; repeats--) lengths[index++] = repeated;
    }
}

static void dynamic(inflater *in) {
    static const uint8_t order[LENGTH_CODES] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    uint8_t lengths[MOST_LITERALS + MOST_DISTANCES] = {0};
    code literals, distances;
    unsigned n_literals = bits(in, 5) + 257, n_distances = bits(in, 5) + 1, n_lengths = bits(in, 4) + 4;
    if (n_literals > MOST_LITERALS || n_distances > MOST_DISTANCES) in->failed = true;
    for (unsigned index = 0; index < n_lengths && !in->failed; index++) lengths[order[index]] = (uint8_t)bits(in, 3);
    if (in->failed || !make(&literals, lengths, LENGTH_CODES, false)) {
        in->failed = true;
        return;
    }
    memset(lengths, 0, sizeof lengths);
    read_lengths(in, &literals, lengths, n_literals + n_distances);
    if (in->failed || lengths[256] == 0 || !make(&literals, lengths, n_literals, true) ||
        !make(&distances, lengths + n_literals, n_distances, true)) {
        in->failed = true;
        return;
    }
    compressed(in, &literals, &distances);
}

gbnn_code inflate_stream(span from, span dictionary, unsigned char *to, size_t room, size_t *size) {
    inflater in = {from, 0, 0, dictionary, to, room, 0, false};
    bool is_last = false;
    while (!is_last && !in.failed) {
        is_last = bits(&in, 1);
        switch (bits(&in, 2)) {
        case 0: stored(&in); break;
        case 1: fixed(&in); break;
        case 2: dynamic(&in); break;
        default: in.failed = true; break;
        }
    }
    *size = in.size;
    return in.failed || in.from.size > 0 ? GBNN_ERROR_DEFLATE : GBNN_OK;
}
