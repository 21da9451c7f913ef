/* Numbers at the dtype of a tensor (docs/format.md, "Dense weights"). */

#ifndef GBNN_DENSE_H
#define GBNN_DENSE_H

#include "core.h"

/* The bits of a number at float16, bfloat16, float32 or float64; outside the range those of the largest number. */
uint64_t pattern_of(double number, gbnn_dtype dtype);

/* The number that bits stand for. */
double number_of(uint64_t pattern, gbnn_dtype dtype);

/* Writes bits in the byte order of the machine. */
static inline void store_pattern(unsigned char *to, size_t width, uint64_t pattern) {
    uint16_t two = (uint16_t)pattern;
    uint32_t four = (uint32_t)pattern;
    if (width == 2) memcpy(to, &two, 2);
    else if (width == 4) memcpy(to, &four, 4);
    else memcpy(to, &pattern, 8);
}

#endif
