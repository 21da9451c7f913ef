/* JSON, as strict as Python's json module and as lax: NaN, Infinity and -Infinity are numbers, halves of surrogate pairs
 * may stand alone in strings, and of two entries with one key the last counts. */

#ifndef GBNN_JSON_H
#define GBNN_JSON_H

#include "core.h"

typedef enum { JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_INTEGER, JSON_FLOAT, JSON_STRING, JSON_ARRAY, JSON_OBJECT } json_kind;

typedef struct {
    uint8_t kind;
    bool broken;     /* a string with half of a surrogate pair */
    bool dead;       /* a key that occurs again later */
    uint32_t begin;  /* of the text of a string or number */
    uint32_t length; /* of that text in bytes; of arrays and objects the number of elements or of keys */
    uint32_t next;   /* node after this one and all that it holds */
} json_node;

/* A parsed text. Nodes are in the order of the text, a container before what it holds, a key before its value. Strings
 * are decoded in place, into UTF-8 in which half of a surrogate pair takes three bytes. */
typedef struct {
    unsigned char *text;
    json_node *nodes;
} json;

/* Parses a text, which is changed. */
gbnn_code json_parse(json *into, arena *memory, unsigned char *text, size_t size);

static inline span json_text(const json *in, uint32_t node) {
    return span_of(in->text + in->nodes[node].begin, in->nodes[node].length);
}

/* Value of a key, or 0 (the root, which is no value) if there is none; `object` must be an object. */
uint32_t json_find(const json *in, uint32_t object, const char *key);

/* Number of different keys of an object. */
uint32_t json_keys(const json *in, uint32_t object);

bool json_equals(const json *in, uint32_t node, const char *text);

/* A number, rounded to the nearest float64. */
double json_number(const json *in, uint32_t node);

/* Whether a number is finite and its magnitude below a power of ten. */
bool json_is_below(const json *in, uint32_t node, int power);

/* Whether a node, and all that it holds and that counts, can be written as UTF-8. */
bool json_is_unicode(const json *in, uint32_t node);

/* Order of texts by their bytes. */
int compare_texts(span a, span b);

/* Sorts numbers by `compare`, without recursion and without memory. */
typedef int (*compare_numbers)(const void *context, uint32_t a, uint32_t b);
void sort_numbers(uint32_t *numbers, size_t count, compare_numbers compare, const void *context);

#endif
