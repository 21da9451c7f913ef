/* Decimal numbers to the nearest float64, exactly: digits are shifted by powers of two until 53 bits stand before the
 * point. Slow, and used for a few numbers per file. */

#include "json.h"
#include "maths.h"

#define MOST_DIGITS 800 /* more than 767 digits decide nothing but whether anything follows */

typedef struct {
    int count;               /* of digits */
    int point;               /* the number is 0.DIGITS times ten to this power */
    bool more;               /* digits other than 0 follow */
    uint8_t digits[MOST_DIGITS + 32];
} decimal;

static void trim(decimal *number) {
    while (number->count > 0 && number->digits[number->count - 1] == 0) number->count--;
    if (number->count == 0) number->point = 0;
}

/* Multiplies by 2^shift, shift up to 59. */
static void shift_left(decimal *number, unsigned shift) {
    uint64_t carry = 0;
    uint8_t above[20];
    int more = 0;
    for (int index = number->count - 1; index >= 0; index--) {
        carry += (uint64_t)number->digits[index] << shift;
        number->digits[index] = (uint8_t)(carry % 10);
        carry /= 10;
    }
    for (; carry > 0; carry /= 10) above[more++] = (uint8_t)(carry % 10);
    memmove(number->digits + more, number->digits, (size_t)number->count);
    for (int index = 0; index < more; index++) number->digits[index] = above[more - 1 - index];
    number->count += more;
    number->point += more;
    while (number->count > MOST_DIGITS) number->more |= number->digits[--number->count] != 0;
    trim(number);
}

/* Divides by 2^shift, shift up to 59. */
static void shift_right(decimal *number, unsigned shift) {
    uint64_t rest = 0, mask = ((uint64_t)1 << shift) - 1;
    int read = 0, written = 0;
    while (rest >> shift == 0) {
        rest = 10 * rest + (read < number->count ? number->digits[read] : 0);
        read++;
    }
    number->point -= read - 1;
    while (read < number->count || rest > 0) {
        uint8_t digit = (uint8_t)(rest >> shift);
        rest = 10 * (rest & mask) + (read < number->count ? number->digits[read] : 0);
        read++;
        if (written < MOST_DIGITS) number->digits[written++] = digit;
        else number->more |= digit != 0;
        if (read > number->count && rest == 0) break;
    }
    number->count = written;
    trim(number);
}

/* The whole part of a number below 2^62, rounded to nearest even. */
static uint64_t rounded(const decimal *number) {
    uint64_t whole = 0;
    int index = 0;
    for (; index < number->point; index++) whole = 10 * whole + (index < number->count ? number->digits[index] : 0);
    if (number->point < 0 || number->point >= number->count) return whole;
    bool is_half = number->digits[number->point] == 5 && number->point + 1 == number->count && !number->more;
    if (is_half) return whole + (whole & 1);
    return whole + (number->digits[number->point] >= 5);
}

static double value_of(decimal *number) {
    int exponent = 0;
    if (number->count == 0 || number->point < -400) return 0.0;
    if (number->point > 400) return INFINITE;
    while (number->point > 17) {
        shift_right(number, 3);
        exponent += 3;
    }
    /* At least 10^16, which has 54 bits, unless the bits would be below those of subnormal numbers. */
    while (number->point < 17 && exponent > -1074) {
        shift_left(number, 1);
        exponent--;
    }
    for (;;) {
        uint64_t whole = rounded(number);
        if (whole <= (uint64_t)1 << 53) return scaled((double)whole, exponent);
        shift_right(number, 1);
        exponent++;
    }
}

static bool is_digit(span text, size_t place) {
    return place < text.size && text.data[place] >= '0' && text.data[place] <= '9';
}

static void add_digits(decimal *number, span text, size_t *place, int power) {
    for (; is_digit(text, *place); ++*place) {
        uint8_t digit = (uint8_t)(text.data[*place] - '0');
        if (number->count == 0 && digit == 0) {
            if (power < 0) number->point--;
            continue;
        }
        if (power > 0) number->point++;
        if (number->count < MOST_DIGITS) number->digits[number->count++] = digit;
        else number->more |= digit != 0;
    }
}

/* A number without its sign. */
static decimal read_decimal(span text, size_t place) {
    decimal number = {0, 0, false, {0}};
    add_digits(&number, text, &place, 1);
    if (place < text.size && text.data[place] == '.') {
        place++;
        add_digits(&number, text, &place, -1);
    }
    if (place < text.size) {
        place++;
        bool negative = text.data[place] == '-';
        if (!is_digit(text, place)) place++;
        int exponent = 0;
        for (; is_digit(text, place); place++) {
            if (exponent < 100000000) exponent = 10 * exponent + (text.data[place] - '0');
        }
        number.point += negative ? -exponent : exponent;
    }
    trim(&number);
    return number;
}

static bool is_finite(span text) {
    unsigned char last = text.data[text.size - 1];
    return last != 'N' && last != 'y';
}

double json_number(const json *in, uint32_t node) {
    span text = json_text(in, node);
    bool negative = text.data[0] == '-';
    double value = INFINITE;
    if (text.data[0] == 'N') return INFINITE - INFINITE;
    if (is_finite(text)) {
        decimal number = read_decimal(text, negative);
        value = value_of(&number);
    }
    return negative ? -value : value;
}

bool json_is_below(const json *in, uint32_t node, int power) {
    span text = json_text(in, node);
    return is_finite(text) && read_decimal(text, text.data[0] == '-').point <= power;
}
