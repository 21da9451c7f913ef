#include "maths.h"

#define STEPS 32

/* 2^(j / 32), and what its rounding left out. */
static const double POWERS[STEPS][2] = {
    {0x1.0000000000000p+0, 0x0.0p+0},
    {0x1.059b0d3158574p+0, 0x1.d73e2a475b465p-55},
    {0x1.0b5586cf9890fp+0, 0x1.8a62e4adc610bp-54},
    {0x1.11301d0125b51p+0, -0x1.6c51039449b3ap-54},
    {0x1.172b83c7d517bp+0, -0x1.19041b9d78a76p-55},
    {0x1.1d4873168b9aap+0, 0x1.e016e00a2643cp-54},
    {0x1.2387a6e756238p+0, 0x1.9b07eb6c70573p-54},
    {0x1.29e9df51fdee1p+0, 0x1.612e8afad1255p-55},
    {0x1.306fe0a31b715p+0, 0x1.6f46ad23182e4p-55},
    {0x1.371a7373aa9cbp+0, -0x1.63aeabf42eae2p-54},
    {0x1.3dea64c123422p+0, 0x1.ada0911f09ebcp-55},
    {0x1.44e086061892dp+0, 0x1.89b7a04ef80d0p-59},
    {0x1.4bfdad5362a27p+0, 0x1.d4397afec42e2p-56},
    {0x1.5342b569d4f82p+0, -0x1.07abe1db13cadp-55},
    {0x1.5ab07dd485429p+0, 0x1.6324c054647adp-54},
    {0x1.6247eb03a5585p+0, -0x1.383c17e40b497p-54},
    {0x1.6a09e667f3bcdp+0, -0x1.bdd3413b26456p-54},
    {0x1.71f75e8ec5f74p+0, -0x1.16e4786887a99p-55},
    {0x1.7a11473eb0187p+0, -0x1.41577ee04992fp-55},
    {0x1.82589994cce13p+0, -0x1.d4c1dd41532d8p-54},
    {0x1.8ace5422aa0dbp+0, 0x1.6e9f156864b27p-54},
    {0x1.93737b0cdc5e5p+0, -0x1.75fc781b57ebcp-57},
    {0x1.9c49182a3f090p+0, 0x1.c7c46b071f2bep-56},
    {0x1.a5503b23e255dp+0, -0x1.d2f6edb8d41e1p-54},
    {0x1.ae89f995ad3adp+0, 0x1.7a1cd345dcc81p-54},
    {0x1.b7f76f2fb5e47p+0, -0x1.5584f7e54ac3bp-56},
    {0x1.c199bdd85529cp+0, 0x1.11065895048ddp-55},
    {0x1.cb720dcef9069p+0, 0x1.503cbd1e949dbp-56},
    {0x1.d5818dcfba487p+0, 0x1.2ed02d75b3707p-55},
    {0x1.dfc97337b9b5fp+0, -0x1.1a5cd4f184b5cp-54},
    {0x1.ea4afa2a490dap+0, -0x1.e9c23179c2893p-54},
    {0x1.f50765b6e4540p+0, 0x1.9d3e12dd8a18bp-54},
};

#define LN2_STEP_HIGH 0x1.62e42fee00000p-6 /* ln 2 / 32 */
#define LN2_STEP_LOW 0x1.a39ef35793c76p-38
#define LN2_HIGH 0x1.62e42fefa39efp-1
#define LN2_LOW 0x1.abc9e3b39803fp-56
#define STEPS_PER_E 0x1.71547652b82fep+5
#define ROUNDER 0x1.8p52 /* adding and subtracting it rounds to a whole number */

double scaled(double number, int exponent) {
    for (int steps = 0; exponent > 1023 && steps < 2; exponent -= 1023, steps++) number *= 0x1p1023;
    /* 2^-969 keeps 53 bits above the subnormal numbers, so that only the last step rounds. */
    for (int steps = 0; exponent < -1022 && steps < 2; exponent += 969, steps++) number *= 0x1p-969;
    if (exponent > 1023) exponent = 1023;
    if (exponent < -1022) exponent = -1022;
    return number * double_of_bits((uint64_t)(exponent + 1023) << 52);
}

int exponent_of(double number) {
    int exponent = 0;
    uint64_t field = bits_of_double(number) >> 52 & 2047;
    if (field == 0) {
        number *= 0x1p54;
        exponent = -54;
        field = bits_of_double(number) >> 52 & 2047;
    }
    return exponent + (int)field - 1022;
}

/* 2^(step / 32) * e^rest, for |rest| below ln 2 / 64 and a little more. */
static double raised(int64_t step, double rest) {
    int64_t octave = step >> 5;
    const double *power = POWERS[step & (STEPS - 1)];
    double square = rest * rest;
    double series = rest + square * (0.5 + rest * (1.0 / 6 + rest * (1.0 / 24 + rest * (1.0 / 120 + rest / 720))));
    return scaled(power[0] + (power[0] * series + power[1]), (int)octave);
}

double exponential(double x) {
    if (x > 710.0) return INFINITE;
    if (x < -746.0) return 0.0;
    double step = (x * STEPS_PER_E + ROUNDER) - ROUNDER;
    return raised((int64_t)step, (x - step * LN2_STEP_HIGH) - step * LN2_STEP_LOW);
}

double power_of_two(double x) {
    if (x >= 1024.0) return INFINITE;
    if (x < -1076.0) return 0.0;
    double step = (x * STEPS + ROUNDER) - ROUNDER;
    double rest = x - step / STEPS; /* exact */
    return raised((int64_t)step, rest * LN2_HIGH + rest * LN2_LOW);
}

double square_root(double x) { return __builtin_sqrt(x); }
