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

#define TOP_BITS 8
#define PADDING 4

/* Cumulative frequencies of one tensor by context and parity, made at first use.
 *
 * The row of a slot has the cumulative frequency of each symbol, then PADDING times 2^24, and for each part of the
 * range, of 2^16, the number of the symbol at its start.
 */
typedef struct {
    uint32_t count[2];    /* of the symbols that a parity allows */
    uint32_t *symbols[2]; /* their ids, ascending */
    int32_t *values[2];   /* their values */
    int64_t *weights[2];
    bool escapes[2];      /* whether the last of them is the outlier */
    bool by_rule;
    int32_t tail, offset;
    int64_t floor;
    uint32_t n_slots, n_rows, used;
    int32_t *rows; /* of each slot, or -1 */
    size_t stride;
    uint32_t *cumulative;
    uint16_t *tops;
    int64_t *scratch;
} models;

/* Makes the models of a tensor with more than one symbol. In version 1 slots are contexts, in version 2 twice the context
 * plus the parity; without a rule the context is 0. */
gbnn_code models_make(span tables, const table *of, const bank *components, int version, arena *memory, models *into);

/* The row of a slot that has none yet; -1 if the slot allows no symbol. */
int32_t models_add(models *in, uint32_t slot, uint32_t context, unsigned parity);

#endif
