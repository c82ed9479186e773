/* The check of what a rule asks for: all of it is in order, or none of it counts. Amounts that are merely too large are
 * no fault; they are clamped where they are applied. */
#include "commerce/pricing.h"

#define LABEL_CHARACTERS 80
#define GIFT_QTY_MAX 10

static bool line_known(const struct pricing_view *view, struct str id) {
    for (size_t i = 0; i < view->lines; i++)
        if (str_eq(view->line[i].id, id)) return true;
    return false;
}

static bool lines_known(const struct pricing_view *view, struct str_list ids) {
    for (size_t i = 0; i < ids.n; i++)
        if (!line_known(view, ids.at[i])) return false;
    return true;
}

static size_t characters(struct str s) {
    size_t n = 0;
    for (size_t i = 0; i < s.len; i++) n += ((unsigned char)s.at[i] & 0xC0) != 0x80;
    return n;
}

static const char *operation_fault(const struct operation *op, const struct pricing_view *view) {
    if (characters(op->label) > LABEL_CHARACTERS) return "label is longer than 80 characters";
    switch (op->kind) {
    case OP_LINE_PERCENT:
    case OP_ORDER_PERCENT:
    case OP_SHIPPING_PERCENT:
        if (op->bps < 1 || op->bps > BPS_WHOLE) return "bps must lie in 1..10000";
        break;
    case OP_LINE_AMOUNT:
    case OP_UNIT_AMOUNT:
    case OP_UNIT_PRICE:
    case OP_ORDER_AMOUNT:
    case OP_SHIPPING_AMOUNT:
        if (op->amount < 1 || op->amount > MONEY_MAX) return "an amount must be above 0";
        break;
    case OP_GIFT_LINE:
        if (op->product_id.len == 0) return "gift_line needs product_id";
        if (op->qty < 1 || op->qty > GIFT_QTY_MAX) return "qty must lie in 1..10";
        return NULL;
    }
    bool on_line = op->kind <= OP_UNIT_PRICE;
    if (on_line && !line_known(view, op->line_id)) return "line_id is not in the cart";
    if (op->units < 0 || op->units > PRICING_QTY_MAX) return "units must lie in 1..9999";
    if (op->max < 0 || op->max > MONEY_MAX) return "max must be above 0";
    if (op->line_ids.n && op->exclude_line_ids.n) return "line_ids and exclude_line_ids exclude each other";
    if (!lines_known(view, op->line_ids) || !lines_known(view, op->exclude_line_ids))
        return "line_ids has an unknown line";
    return NULL;
}

bool operations_check(const struct rule_result *result, const struct pricing_view *view, const char **why) {
    *why = NULL;
    if (result->operations > PRICING_OPERATIONS_MAX) *why = "more than 200 operations";
    for (size_t i = 0; !*why && i < result->operations; i++) *why = operation_fault(&result->operation[i], view);
    return !*why;
}
