#include "bits.h"

#define RICE_LIMIT 6
#define LONGEST_QUOTIENT 53

bits bits_of(span bytes) {
    bits result = {bytes.data, bytes.size, 0, 8 * (uint64_t)bytes.size, false};
    return result;
}

/* The next 64 bits, with zeros past the end. */
static uint64_t peek(const bits *from) {
    size_t byte = (size_t)(from->place / 8);
    unsigned shift = (unsigned)(from->place % 8);
    uint64_t result = 0;
    for (size_t index = 0; index < 8; index++) {
        result = result << 8 | (byte + index < from->size ? from->data[byte + index] : 0);
    }
    if (shift == 0) return result;
    uint64_t next = byte + 8 < from->size ? from->data[byte + 8] : 0;
    return result << shift | next >> (8 - shift);
}

static bool taken(bits *from, uint64_t count) {
    if (from->failed || count > from->end - from->place) {
        from->failed = true;
        return false;
    }
    from->place += count;
    return true;
}

uint64_t bits_u(bits *from, unsigned width) {
    uint64_t next = peek(from);
    return taken(from, width) && width > 0 ? next >> (64 - width) : 0;
}

/* Number of zeros before the next one; moves past that one. */
static uint64_t zeros(bits *from) {
    uint64_t count = 0;
    while (!from->failed) {
        uint64_t next = peek(from);
        if (next != 0) {
            unsigned here = 63 - highest_bit(next);
            return taken(from, here + 1) ? count + here : 0;
        }
        count += 64;
        taken(from, 64);
    }
    return 0;
}

uint64_t bits_eg(bits *from, unsigned order) {
    uint64_t width = zeros(from) + order;
    if (width > 63) from->failed = true;
    if (from->failed) return 0;
    uint64_t rest = bits_u(from, (unsigned)width);
    return ((uint64_t)1 << width) - ((uint64_t)1 << order) + rest;
}

int64_t bits_zz(bits *from, unsigned order) {
    uint64_t value = bits_eg(from, order);
    int64_t half = (int64_t)(value >> 1);
    return value & 1 ? -half - 1 : half;
}

uint64_t bits_quotient(bits *from) {
    uint64_t count = zeros(from);
    if (count <= RICE_LIMIT) return count;
    uint64_t extra = count - RICE_LIMIT;
    if (extra > LONGEST_QUOTIENT) from->failed = true;
    if (from->failed) return 0;
    return RICE_LIMIT - 1 + ((uint64_t)1 << extra) + bits_u(from, (unsigned)extra);
}

void bits_skip(bits *from, uint64_t count, unsigned width) {
    if (width == 0) return;
    if (count > from->end) from->failed = true;
    else taken(from, count * width);
}
