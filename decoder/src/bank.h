/* Components, and the scales of the shared tensors (docs/format.md, "Section `bank`"). */

#ifndef GBNN_BANK_H
#define GBNN_BANK_H

#include "core.h"

typedef struct {
    uint32_t size;    /* K, at most 131,072 */
    double *means;    /* (K) ascending, in units of the scales */
    int32_t *eighths; /* (K) log deviations in eighths */
    int32_t *values;  /* (K + 1) magnitudes below 2^24 for the contexts, last that of outliers */
    double *scales;   /* (T) */
} bank;

gbnn_code bank_read(span section, uint64_t n_shared, arena *memory, bank *into);

#endif
