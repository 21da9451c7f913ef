/* Checks of the facts. The decoder needs `noise` only, but refuses what gbnn-compress refuses. */

#include "manifest.h"

#define REQUIRE(condition)                                                                                            \
    do {                                                                                                               \
        if (!(condition)) return false;                                                                                \
    } while (0)

typedef bool (*check)(const json *in, uint32_t node);

static json_kind kind_of(const json *in, uint32_t node) { return (json_kind)in->nodes[node].kind; }

/* json_find gives 0 for a missing key, which is the root; the root is an object, and no fact. */
static bool is_missing(uint32_t node) { return node == 0; }

static bool is_null(const json *in, uint32_t node) { return kind_of(in, node) == JSON_NULL; }

static bool is_object(const json *in, uint32_t node) { return !is_missing(node) && kind_of(in, node) == JSON_OBJECT; }

static bool is_string(const json *in, uint32_t node) { return kind_of(in, node) == JSON_STRING; }

/* Finite and below 1e300. */
static bool is_number(const json *in, uint32_t node) {
    bool is_kind = kind_of(in, node) == JSON_INTEGER || kind_of(in, node) == JSON_FLOAT;
    return !is_missing(node) && is_kind && json_is_below(in, node, 300);
}

/* An integer from 0 to 2^63 - 1. */
static bool is_count(const json *in, uint32_t node) {
    if (is_missing(node) || kind_of(in, node) != JSON_INTEGER) return false;
    span text = json_text(in, node);
    uint64_t number = 0;
    size_t start = text.data[0] == '-';
    for (size_t index = start; index < text.size; index++) {
        uint64_t digit = (uint64_t)(text.data[index] - '0');
        if (number > (INT64_MAX - digit) / 10) return false;
        number = 10 * number + digit;
    }
    return start == 0 || number == 0;
}

static bool is_list_of(const json *in, uint32_t node, check holds) {
    if (is_missing(node) || kind_of(in, node) != JSON_ARRAY) return false;
    for (uint32_t each = node + 1; each < in->nodes[node].next; each = in->nodes[each].next) REQUIRE(holds(in, each));
    return true;
}

static bool is_null_or(const json *in, uint32_t node, check holds) {
    return !is_missing(node) && (is_null(in, node) || holds(in, node));
}

/* An optional entry: missing, null or as it should be. */
static bool may_be(const json *in, uint32_t node, check holds) { return is_missing(node) || is_null_or(in, node, holds); }

static bool is_one_of(const json *in, uint32_t node, const char *one, const char *other) {
    return !is_missing(node) && is_string(in, node) && (json_equals(in, node, one) || json_equals(in, node, other));
}

static bool starts_with(span text, const char *start) {
    return text.size >= strlen(start) && memcmp(text.data, start, strlen(start)) == 0;
}

static bool is_architecture(const json *in, uint32_t node) {
    if (!is_string(in, node)) return false;
    return starts_with(json_text(in, node), "torchvision/") || starts_with(json_text(in, node), "timm/");
}

/* The entry of one output: its relative error. */
static bool is_compared(const json *in, uint32_t node) {
    if (!is_object(in, node) || json_keys(in, node) != 1) return false;
    return is_null_or(in, json_find(in, node, "relative_error"), is_number);
}

/* A number before and after. */
static bool is_changed(const json *in, uint32_t node) {
    if (!is_object(in, node) || json_keys(in, node) != 2) return false;
    return is_null_or(in, json_find(in, node, "before"), is_number) && is_number(in, json_find(in, node, "after"));
}

static bool checkpoint_holds(const json *in, uint32_t checkpoint) {
    REQUIRE(is_object(in, checkpoint));
    REQUIRE(is_count(in, json_find(in, checkpoint, "bytes")));
    REQUIRE(is_count(in, json_find(in, checkpoint, "parameters")));
    REQUIRE(is_list_of(in, json_find(in, checkpoint, "notes"), is_string));
    return is_null_or(in, json_find(in, checkpoint, "architecture"), is_architecture);
}

static bool outputs_hold(const json *in, uint32_t outputs) {
    if (is_missing(outputs)) return true;
    REQUIRE(is_object(in, outputs));
    for (uint32_t key = outputs + 1; key < in->nodes[outputs].next; key = in->nodes[key + 1].next) {
        REQUIRE(in->nodes[key].dead || is_compared(in, key + 1));
    }
    return true;
}

static bool damage_holds(const json *in, uint32_t damage) {
    static const char *const numbers[] = {"drop", "agreement", "logit_kl", "safe_ratio"};
    REQUIRE(is_object(in, damage));
    for (size_t index = 0; index < 4; index++) {
        REQUIRE(is_null_or(in, json_find(in, damage, numbers[index]), is_number));
    }
    uint32_t measured = json_find(in, damage, "measured");
    REQUIRE(!is_missing(measured) && (kind_of(in, measured) == JSON_TRUE || kind_of(in, measured) == JSON_FALSE));
    REQUIRE(may_be(in, json_find(in, damage, "relative_error"), is_number));
    REQUIRE(may_be(in, json_find(in, damage, "cosine"), is_number));
    REQUIRE(outputs_hold(in, json_find(in, damage, "outputs")));
    REQUIRE(may_be(in, json_find(in, damage, "metric"), is_changed));
    REQUIRE(may_be(in, json_find(in, damage, "loss"), is_changed));
    return may_be(in, json_find(in, damage, "assumes"), is_string);
}

/* Exactly one of a ratio, a drop and an error is given. */
static bool target_holds(const json *in) {
    static const char *const targets[] = {"target_ratio", "max_drop", "max_error"};
    int given = 0;
    for (size_t index = 0; index < 3; index++) {
        uint32_t target = json_find(in, 0, targets[index]);
        REQUIRE(!is_missing(target) || index == 2);
        if (is_missing(target) || is_null(in, target)) continue;
        REQUIRE(is_number(in, target));
        given++;
    }
    return given == 1 && is_one_of(in, json_find(in, 0, "ratio_of"), "artifact", "parameters");
}

static bool training_holds(const json *in, uint32_t training) {
    if (is_missing(training)) return true;
    REQUIRE(is_object(in, training));
    REQUIRE(is_count(in, json_find(in, training, "epochs")));
    REQUIRE(is_number(in, json_find(in, training, "beta")));
    uint32_t warm_up = json_find(in, training, "warm_up");
    return is_missing(warm_up) || is_number(in, warm_up);
}

static bool options_hold(const json *in) {
    uint32_t task = json_find(in, 0, "task"), blends = json_find(in, 0, "blends");
    uint32_t missed = json_find(in, 0, "not_calibrated"), temperature = json_find(in, 0, "temperature");
    REQUIRE(is_missing(task) || is_null(in, task) || is_one_of(in, task, "classifier", "other"));
    REQUIRE(is_missing(blends) || is_list_of(in, blends, is_count));
    REQUIRE(is_missing(missed) || is_list_of(in, missed, is_string));
    REQUIRE(is_missing(temperature) || (is_number(in, temperature) && json_number(in, temperature) > 0));
    return training_holds(in, json_find(in, 0, "training"));
}

/* Whether everything but the tensors and the ties, which are checked where they are read, is text. */
static bool is_text(const json *in) {
    for (uint32_t key = 1; key < in->nodes[0].next; key = in->nodes[key + 1].next) {
        if (in->nodes[key].dead || json_equals(in, key, "tensors") || json_equals(in, key, "ties")) continue;
        REQUIRE(!in->nodes[key].broken && json_is_unicode(in, key + 1));
    }
    return true;
}

bool facts_hold(const json *in, double *noise) {
    REQUIRE(is_text(in));
    REQUIRE(checkpoint_holds(in, json_find(in, 0, "checkpoint")));
    REQUIRE(damage_holds(in, json_find(in, 0, "damage")));
    REQUIRE(is_object(in, json_find(in, 0, "recipe")) && is_object(in, json_find(in, 0, "versions")));
    REQUIRE(is_list_of(in, json_find(in, 0, "warnings"), is_string));
    uint32_t seed = json_find(in, 0, "seed"), noise_node = json_find(in, 0, "noise");
    REQUIRE(is_number(in, seed) && kind_of(in, seed) == JSON_INTEGER);
    REQUIRE(is_count(in, json_find(in, 0, "components_before_merging")));
    REQUIRE(target_holds(in) && options_hold(in));
    REQUIRE(is_number(in, noise_node));
    *noise = json_number(in, noise_node);
    return *noise >= 0;
}
