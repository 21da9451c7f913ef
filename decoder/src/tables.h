/* Frequency tables of the shared tensors, and the models that are made of them (docs/format.md, "tables"). */

#ifndef GBNN_TABLES_H
#define GBNN_TABLES_H

#include "bank.h"
#include "bits.h"

#define PRECISION 24
#define RANGE (1u << PRECISION)

#define N_LEVELS 112
#define REACH 8
#define N_PREDICTIONS (2 * REACH + 1)
#define N_CONTEXTS (N_LEVELS * N_PREDICTIONS)

/* How frequencies depend on the context. */
typedef struct {
    int32_t start, left, above, corner, tail, offset, floor;
} rule;

/* A table without its levels, which are read again from their place when they are needed. */
typedef struct {
    uint64_t place;    /* in bits */
    uint32_t n_live;   /* number of symbols that occur */
    uint32_t only;     /* the last of them */
    bool has_outliers; /* whether K is one of them */
    bool has_trellis, has_rule;
    rule rule;
} table;

/* Reads and checks the next table. */
gbnn_code table_read(bits *from, const gbnn_tensor *tensor, uint32_t n_components, int version, table *into);

/* Number of taps of a tensor's kernel, and the kernel's width. */
void kernel_of(const gbnn_tensor *tensor, uint64_t *taps, uint64_t *width);

/* The inverse of the logarithms in sixteenths of octaves, for levels >= 0. */
static inline int64_t ex(int64_t level) { return ((16 + (level & 15)) << (level >> 4)) >> 4; }

#define TOP_BITS 7
#define TOP_WORDS ((1u << TOP_BITS) / 4)
#define PADDING 4

/* What is known of a symbol: its value for the contexts, and its id. */
typedef struct {
    int32_t value;
    uint32_t id;
} symbol;

/* Cumulative frequencies of one tensor by context and parity, made at first use.
 *
 * The row of a slot starts with a number that find_symbol adds. Then comes a byte for each of 2^TOP_BITS parts of the
 * range: the number of the symbol at its start, without its `shift` low bits. The cumulative frequency of each symbol
 * follows, then PADDING times 2^24. Rows are small so that many of them stay in a processor's cache.
 */
typedef struct {
    symbol *symbols; /* those that parity 0 allows by ascending ids, then those of parity 1 */
    int64_t *weights;
    uint32_t start[2], count[2]; /* of a parity's symbols */
    uint32_t outlier;            /* K */
    unsigned shift;
    bool by_rule;
    int32_t tail, offset;
    int64_t floor;
    uint32_t n_slots, n_rows, used;
    size_t stride;
    int32_t *places; /* of each slot's row, or -1 */
    uint32_t *rows;
    int64_t *scratch;
} models;

/* Makes the models of a tensor with more than one symbol. In version 1 slots are contexts, in version 2 twice the context
 * plus the parity; without a rule the context is 0. */
gbnn_code models_make(span tables, const table *of, const bank *components, int version, arena *memory, models *into);

/* Makes the row of a slot that has none, and returns its place; -1 if the slot allows no symbol. When there is no room for
 * more rows, all others are dropped; there is room for 16 at least. */
int32_t models_add(models *in, uint32_t slot, uint32_t context, unsigned parity);

typedef struct {
    uint32_t number; /* among the symbols */
    uint32_t start, stop;
} range;

/* The symbol of a row whose range holds `low`. Few ranges are so small that the loop is entered. */
static inline range find_symbol(const uint32_t *row, uint32_t low, unsigned shift) {
    const unsigned char *tops = (const unsigned char *)(row + 1);
    uint32_t first = (uint32_t)tops[low >> (PRECISION - TOP_BITS)] << shift;
    const uint32_t *starts = row + 1 + TOP_WORDS + first;
    size_t more = low >= starts[1];
    more += low >= starts[2];
    more += low >= starts[3];
    while (low >= starts[more + 1]) more++;
    range result = {row[0] + first + (uint32_t)more, starts[more], starts[more + 1]};
    return result;
}

#endif
