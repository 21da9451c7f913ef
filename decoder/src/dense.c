#include "dense.h"

#include "maths.h"

#define LARGEST_FLOAT 0x7F7FFFFFu
#define LARGEST_BFLOAT16 0x7F7Fu
#define LARGEST_FLOAT16 0x7BFFu

/* float32 to bfloat16, to the nearest, ties to even. */
static uint32_t bfloat16_of(uint32_t single) {
    uint32_t sign = single >> 16 & 0x8000, magnitude = single & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return 0x7FC0;
    uint32_t rounded = (magnitude + 0x7FFF + (magnitude >> 16 & 1)) >> 16;
    return sign | (rounded > LARGEST_BFLOAT16 ? LARGEST_BFLOAT16 : rounded);
}

/* float32 to float16, to the nearest, ties to even. */
static uint32_t float16_of(uint32_t single) {
    uint32_t sign = single >> 16 & 0x8000, magnitude = single & 0x7FFFFFFF;
    if (magnitude > 0x7F800000) return sign | 0x7E00;
    if (magnitude < 0x38800000) {
        /* Below 2^-14 the last bit is worth 2^-24. Adding 1/2 to a float32 rounds to just that. */
        return sign | (bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3F000000);
    }
    uint32_t rounded = (magnitude - 0x38000000 + 0xFFF + (magnitude >> 13 & 1)) >> 13;
    return sign | (rounded > LARGEST_FLOAT16 ? LARGEST_FLOAT16 : rounded);
}

uint64_t pattern_of(double number, gbnn_dtype dtype) {
    number = clamped(number, LARGEST_DOUBLE);
    if (dtype == GBNN_FLOAT64) return bits_of_double(number);
    uint32_t single = bits_of_float((float)clamped(number, 0x1.fffffep127));
    if (dtype == GBNN_FLOAT32) return single;
    return dtype == GBNN_FLOAT16 ? float16_of(single) : bfloat16_of(single);
}

static double number_of_float16(uint32_t pattern) {
    double sign = pattern & 0x8000 ? -1.0 : 1.0;
    int exponent = (int)(pattern >> 10 & 31);
    double fraction = (double)(pattern & 1023);
    if (exponent == 31) return fraction > 0 ? INFINITE - INFINITE : sign * INFINITE;
    return sign * (exponent == 0 ? scaled(fraction, -24) : scaled(1024 + fraction, exponent - 25));
}

double number_of(uint64_t pattern, gbnn_dtype dtype) {
    if (dtype == GBNN_FLOAT64) return double_of_bits(pattern);
    if (dtype == GBNN_FLOAT16) return number_of_float16((uint32_t)pattern);
    return float_of_bits((uint32_t)pattern << (dtype == GBNN_BFLOAT16 ? 16 : 0));
}
