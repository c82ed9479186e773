// link: script
/* core.money and core.pricing as Lua sees them: forms, conversions and hooks; the arithmetic itself is tested in C. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <lauxlib.h>
#include <lualib.h>

#include "script/bind.h"

static lua_State *L;

static int open_state(void **state) {
    (void)state;
    L = luaL_newstate();
    if (!L) return -1;
    luaL_openlibs(L);
    lua_getglobal(L, "package");
    lua_getfield(L, -1, "preload");
    lua_pushcfunction(L, luaopen_core_money);
    lua_setfield(L, -2, "core.money");
    lua_pushcfunction(L, luaopen_core_pricing);
    lua_setfield(L, -2, "core.pricing");
    lua_pop(L, 2);
    return luaL_dostring(L, "money, pricing = require('core.money'), require('core.pricing')\n"
                            "function same(got, want) if got ~= want then error(('%s, not %s'):format(tostring(got), "
                            "tostring(want)), 2) end end\n"
                            "function source(quote, id) local sum = 0 for _, a in ipairs(quote.adjustments) do if "
                            "a.source_id == id then sum = sum + a.amount end end return sum end\n");
}

static int close_state(void **state) {
    (void)state;
    lua_close(L);
    return 0;
}

static void run(const char *text) {
    if (luaL_dostring(L, text)) fail_msg("%s", lua_tostring(L, -1));
}

static void money_parses_and_formats(void **state) {
    (void)state;
    run("same(money.parse('25000000.00', 'VND'), 25000000)\n"
        "same(money.parse(25000000, 'VND'), 25000000)\n"
        "same(money.parse(19.99, 'USD'), 1999)\n"
        "same(money.parse(0.1 + 0.2, 'USD'), nil)\n"
        "same(money.parse(90000000000000.01, 'USD'), nil)\n"
        "same(select(2, money.parse('390000.5', 'VND')), 'money_precision')\n"
        "same(select(2, money.parse('abc', 'VND')), 'money_malformed')\n"
        "same(select(2, money.parse(1/0, 'VND')), 'money_malformed')\n"
        "same(select(2, money.parse(nil, 'VND')), 'money_malformed')\n"
        "same(select(2, money.parse(1e17, 'VND')), 'money_range')\n"
        "same(money.format(25000000, 'VND'), '25000000.00')\n"
        "same(money.format(-5, 'USD'), '-0.05')\n"
        "same(money.major(1999, 'USD'), 19.99)\n"
        "same(money.major(390000, 'VND'), 390000)\n"
        "same(money.exponent('KWD'), 3) same(money.exponent('none'), nil)\n"
        "same(pcall(money.format, 1.5, 'VND'), false)\n"
        "same(pcall(money.format, 1, 'ZZZ'), false)\n");
}

static void money_divides_and_splits(void **state) {
    (void)state;
    run("same(money.mul_div(25, 1, 2), 13) same(money.mul_div(25, 1, 2, 'floor'), 12)\n"
        "same(money.mul_div(money.MAX, 1000000, 1000000), money.MAX)\n"
        "same(select(2, money.mul_div(money.MAX, money.MAX, 1)), 'money_range')\n"
        "same(pcall(money.mul_div, 1, 1, 0), false)\n"
        "same(money.pct(25000000, 1000), 2500000)\n"
        "same(table.concat(money.alloc(1000, {1999, 501, 333}), ' '), '706 177 117')\n"
        "same(table.concat(money.alloc(1, {5, 5}), ' '), '1 0')\n"
        "same(table.concat(money.alloc(1, {5, 5}, {'b', 'a'}), ' '), '0 1')\n"
        "same(select(2, money.alloc(1, {0})), 'money_range')\n"
        "same(pcall(money.alloc, 1, {-1}), false)\n"
        "same(money.split(2698409, 3, 1), 899470)\n"
        "local rate = {rate = '25450.000000'}\n"
        "same(money.convert(10000, 'USD', 'VND', rate), 2545000)\n"
        "same(money.convert(2545000, 'VND', 'USD', {rate = 25450, inverse = true}), 10000)\n"
        "same(money.convert(100, 'USD', 'USD'), 100)\n"
        "same(money.convert(100, 'EUR', 'VND', {{rate = '1.1'}, rate}), 27995)\n"
        "same(pcall(money.convert, 100, 'EUR', 'VND', {rate = '-1'}), false)\n");
}

static const char *const gamer =
    "function gamer() return {\n"
    "  currency = 'VND', now_ms = '2026-11-24T06:00:00Z', weekday = 2, hour = 13, max_coupons = 1,\n"
    "  lines = {\n"
    "    {id='l1', product_id='phone', category_ids={'phones'}, qty=1, price=25000000, weight_g=1000,\n"
    "     requires_shipping=true, attributes={colour='black'}, track_inventory=true},\n"
    "    {id='l2', product_id='earbuds', qty=3, price=1290000, weight_g=100, requires_shipping=true},\n"
    "    {id='l3', product_id='case', bundle_id='pack', bundle_key='k', qty=1, price=390000, weight_g=300, "
    "requires_shipping=true},\n"
    "    {id='l4', product_id='charger', bundle_id='pack', bundle_key='k', qty=1, price=590000, weight_g=400, "
    "requires_shipping=true}},\n"
    "  bundles = {{id='pack', name='Pack', price=850000, items={{product_id='case', qty=1}, {product_id='charger', "
    "qty=1}}}},\n"
    "  promotions = {\n"
    "    {id='p1', kind='discount', value_type='percent', value=1000, level='line', max_discount=2000000,\n"
    "     targets={kind='category', ids={'phones'}}, weekdays={1, 2}, version=4},\n"
    "    {id='p2', kind='b1g1', level='line', targets={kind='product', ids={'earbuds'}}}},\n"
    "  coupons = {{id='c1', code='KASMA5', kind='percentage', value=500, max_discount=1000000, min_order=500000},\n"
    "             {code='NOPE', found=false}},\n"
    "  points = {requested=300, available=500, value=1000, step=10, redeem_max_bps=5000, earn_unit=10000},\n"
    "  customer = {id='u', multiplier_pct=120, groups={'vip'}},\n"
    "  shipping = {place={country='VN', city='Hanoi'}, zones={{id='z', countries={'VN'}}},\n"
    "    methods={{id='m', name='Standard', zone_id='z', base=35000, per_kg=5000, estimated_days='2-3 days'}}},\n"
    "  tax = {home_country='VN', mode='half_up', level='line', shipping='by_class', place={country='VN'},\n"
    "    rules={{id='vn', name='VAT', country='VN', ppm=100000}}},\n"
    "  cards = {{id='g', code='GC-500', balance=500000}}, wallet = {id='w', balance=1000000},\n"
    "  snapshot = {tenant={id='t', country='VN'}, cart={id='cart', version=7}, customer={tier={name='Gold'}}},\n"
    "} end\n";

static void the_worked_example_comes_through(void **state) {
    (void)state;
    run(gamer);
    run("local q = assert(pricing.quote(gamer()))\n"
        "same(q.total, 27692500) same(q.due, 26192500) same(q.discount, 4720000) same(q.tax, 2517500)\n"
        "same(q.gift_card, 500000) same(q.wallet, 1000000) same(q.earn_points, 3015) same(q.points_used, 300)\n"
        "same(q.shipping.net, 45000) same(q.shipping.known, true) same(q.shipping.method_id, 'm')\n"
        "same(q.lines[2].net, 2453099) same(q.lines[2].tax, 245310) same(q.lines[2].source_id, 'l2')\n"
        "same(q.lines[1].taxes[1].name, 'VAT') same(q.lines[1].rate_ppm, 100000)\n"
        "same(q.rejected[1].code, 'NOPE') same(q.rejected[1].reason, 'not_found')\n"
        "same(#q.rejected, 1) same(source(q, 'p1'), 2000000) same(q.groups[1].net, 45000)\n"
        "same(q.promotion_uses[1].promotion_id, 'p1') same(q.coupon_uses[1].amount_minor, 1000000)\n"
        "local rows = 0 for _, r in ipairs(q.adjustment_rows) do rows = rows + r.amount end same(rows, 4720000)\n"
        "same(#q.trace > 5, true) same(q.taxes[1].amount, 2517500)\n"
        "local again = assert(pricing.quote(gamer())) same(again.total, q.total)\n");
}

static void faults_of_the_input_name_the_member(void **state) {
    (void)state;
    run(gamer);
    run("local function refused(change, words)\n"
        "  local input = gamer() change(input)\n"
        "  local ok, message = pcall(pricing.quote, input)\n"
        "  if ok or not message:find(words, 1, true) then error(tostring(message), 2) end\n"
        "end\n"
        "refused(function(i) i.lines[2].qty = 1.5 end, 'lines[2].qty: an integer')\n"
        "refused(function(i) i.lines[2].price = '5' end, 'lines[2].price')\n"
        "refused(function(i) i.promotions[1].kind = 'gift' end, 'promotions[1].kind: a known word')\n"
        "refused(function(i) i.promotions[1].weekdays = {8} end, 'weekdays')\n"
        "refused(function(i) i.tax.mode = 1 end, 'tax.mode')\n"
        "refused(function(i) i.now_ms = 'yesterday' end, 'now_ms')\n"
        "refused(function(i) i.lines = 'many' end, 'lines')\n"
        "refused(function(i) for n = 1, 300 do i.lines[n] = i.lines[1] end end, 'shorter')\n"
        "local input = gamer() input.lines[1].qty = 0\n"
        "local q, err = pricing.quote(input) same(q, nil) same(err.kind, 'invalid')\n"
        "input = gamer() input.lines[1].price = money.MAX input.lines[1].qty = 2\n"
        "q, err = pricing.quote(input) same(q, nil) same(err.kind, 'limit')\n"
        "input = gamer() input.currency = 'ZZZ' q, err = pricing.quote(input) same(err.kind, 'invalid')\n"
        "same(pcall(pricing.quote), false)\n");
}

static void promotion_rules_see_the_snapshot_and_are_checked(void **state) {
    (void)state;
    run(gamer);
    run("local seen\n"
        "local function priced(operations, version)\n"
        "  local input = gamer() input.coupons, input.points, input.promotions = nil, nil, nil\n"
        "  return assert(pricing.quote(input, {promotion = function(s)\n"
        "    seen = s return {{rule_id='r', name='Rule', version=version or 3, operations=operations}} end}))\n"
        "end\n"
        "local q = priced{{op='line_percent', line_id='l2', bps=5000, units=1, label='Half'}}\n"
        "same(source(q, 'r'), 645000)\n"
        "same(seen.hook, 'promotion') same(seen.currency.code, 'VND') same(seen.cart.net, 29720000)\n"
        "same(seen.cart.id, 'cart') same(seen.cart.item_count, 6) same(seen.cart.lines[1].attributes.colour, 'black')\n"
        "same(seen.customer.tier.name, 'Gold') same(seen.customer.groups[1], 'vip') same(seen.tenant.country, 'VN')\n"
        "same(seen.cart.lines[3].discounts[1].kind, 'bundle') same(seen.cart.lines[3].discounts[1].amount, 51735)\n"
        "same(seen.shipping.address.city, 'Hanoi') same(seen.now.wday, 2) same(seen.cart.lines[1].purchase_type, "
        "'one_time')\n"
        "local row for _, a in ipairs(q.adjustments) do if a.source_id == 'r' then row = a end end\n"
        "same(row.kind, 'script') same(row.label, 'Half') same(row.version, 3) same(row.level, 'line')\n"
        "for _, bad in ipairs{\n"
        "  {{op='line_percent', line_id='l2', bps=5000}, {op='line_amount', line_id='l2', amount=1000.5}},\n"
        "  {{op='line_amount', line_id='l2', amount=0/0}}, {{op='line_amount', line_id='l2', amount=-1}},\n"
        "  {{op='line_amount', line_id='nowhere', amount=1}}, {{op='line_amount', amount=1}},\n"
        "  {{op='line_amount', line_id='l2', amount=1, colour='red'}}, {{op='steal'}}, {{}}, {true}, 'all of it',\n"
        "  {{op='order_percent', bps=10001}}, {{op='line_amount', line_id='l2', amount='5'}},\n"
        "  {{op='order_amount', amount=1, line_ids={}}}, {{op='line_percent', line_id='l2', bps=1, units=0}},\n"
        "  {{op='line_percent', line_id='l2', bps=1, [1]='x'}}, {{op='gift_line', product_id='x', qty=11}},\n"
        "} do\n"
        "  local q, noted = priced(bad)\n"
        "  for _, t in ipairs(q.trace) do noted = noted or t.rule == 'r' and t.note == 'invalid_result' end\n"
        "  same(source(q, 'r'), 0) same(noted, true)\n"
        "end\n"
        "same(priced({{op='gift_line', product_id='cable'}}).wanted[1].product_id, 'cable')\n"
        "same(priced({{op='order_amount', amount=money.MAX}}).merchandise, 0)\n"
        "local input = gamer()\n"
        "local q, err = pricing.quote(input, {promotion = function() error('broken rule host') end})\n"
        "same(q, nil) same(err.kind, 'internal') same(err.message:find('broken rule host', 1, true) ~= nil, true)\n"
        "q, err = pricing.quote(input, {promotion = function() return pricing.quote(gamer()) end})\n"
        "same(q, nil) same(err.kind, 'internal')\n"
        "same(pricing.quote(gamer()).total, 27692500)\n");
}

static void tax_rules_override_the_lines_they_name(void **state) {
    (void)state;
    run(gamer);
    run("local seen\n"
        "local function taxed(answer)\n"
        "  return assert(pricing.quote(gamer(), {tax_resolve = function(s) seen = s return answer end})).tax\n"
        "end\n"
        "same(taxed(nil), 2517500)\n"
        "same(seen.subject.candidates[1].rate_ppm, 100000) same(seen.subject.lines[1].net, 21868710)\n"
        "same(seen.subject.address.country, 'VN')\n"
        "same(taxed{{line='l1', rate_ppm=0, name='Free'}}, 2517500 - 2186871)\n"
        "same(taxed{{line='shipping', rate_ppm=200000}}, 2517500 + 4500)\n"
        "same(taxed{{line='l1', rate_ppm=1000001}}, 2517500)\n"
        "same(taxed{{line='l9', rate_ppm=0}}, 2517500) same(taxed{{line='l1'}}, 2517500) same(taxed('none'), "
        "2517500)\n");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(money_parses_and_formats),
        cmocka_unit_test(money_divides_and_splits),
        cmocka_unit_test(the_worked_example_comes_through),
        cmocka_unit_test(faults_of_the_input_name_the_member),
        cmocka_unit_test(promotion_rules_see_the_snapshot_and_are_checked),
        cmocka_unit_test(tax_rules_override_the_lines_they_name),
    };
    return cmocka_run_group_tests(tests, open_state, close_state);
}
