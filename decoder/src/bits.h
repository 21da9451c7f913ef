/* Bit strings, most significant bit first (docs/format.md, "Codes"). */

#ifndef GBNN_BITS_H
#define GBNN_BITS_H

#include "core.h"

/* A reader. Once a read goes past the end, or a code is larger than any that is allowed, it has failed, and all that is
 * read from then on is 0. */
typedef struct {
    const unsigned char *data;
    size_t size;
    uint64_t place, end; /* in bits */
    bool failed;
} bits;

bits bits_of(span bytes);

/* An unsigned integer of width bits, 0 to 64. */
uint64_t bits_u(bits *from, unsigned width);

/* Exp-Golomb code of an order up to 63; one of 2^64 or more fails. */
uint64_t bits_eg(bits *from, unsigned order);

/* The signed integer of an Exp-Golomb code. */
int64_t bits_zz(bits *from, unsigned order);

/* Quotient of a Rice code. */
uint64_t bits_quotient(bits *from);

/* Moves past count integers of width bits each. */
void bits_skip(bits *from, uint64_t count, unsigned width);

/* Position of the highest bit of a number that is not 0. */
static inline unsigned highest_bit(uint64_t number) { return 63 - (unsigned)__builtin_clzll(number); }

#endif
