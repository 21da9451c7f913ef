/* What the C library would offer, so that WebAssembly needs none and all machines give the same bits. */

#ifndef GBNN_MATHS_H
#define GBNN_MATHS_H

#include "core.h"

#define LARGEST_DOUBLE 0x1.fffffffffffffp1023
#define INFINITE __builtin_inf()

static inline uint64_t bits_of_double(double number) {
    uint64_t pattern;
    memcpy(&pattern, &number, sizeof pattern);
    return pattern;
}

static inline double double_of_bits(uint64_t pattern) {
    double number;
    memcpy(&number, &pattern, sizeof number);
    return number;
}

static inline uint32_t bits_of_float(float number) {
    uint32_t pattern;
    memcpy(&pattern, &number, sizeof pattern);
    return pattern;
}

static inline float float_of_bits(uint32_t pattern) {
    float number;
    memcpy(&number, &pattern, sizeof number);
    return number;
}

static inline double clamped(double number, double most) {
    return number > most ? most : number < -most ? -most : number;
}

/* number * 2^exponent, rounded once. */
double scaled(double number, int exponent);

/* The least X with |number| < 2^X, for finite numbers other than 0. */
int exponent_of(double number);

/* Error below 0.52 units in the last place, before results below 2^-1022 are rounded. */
double exponential(double x);
double power_of_two(double x);

double square_root(double x);

#endif
