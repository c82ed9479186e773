// link: script
/* core.money and core.pricing as Lua sees them: forms, conversions and hooks; the arithmetic itself is tested in C. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <lauxlib.h>
#include <lualib.h>

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "runtime/log.h"
#include "runtime/loop.h"
#include "script/bind.h"
#include "script/rules.h"

static lua_State *L;
static char dir[32];

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
    lua_pushcfunction(L, luaopen_core_rules);
    lua_setfield(L, -2, "core.rules");
    lua_pop(L, 2);
    struct error err;
    memcpy(dir, "/tmp/kasma-pricing-XXXXXX", 26);
    log_set_level(LOG_ERROR);
    if (!loop_open() || !mkdtemp(dir) || !rules_open(L, dir, false, &err)) return -1;
    return luaL_dostring(L, "money, pricing = require('core.money'), require('core.pricing')\n"
                            "rules = require('core.rules')\n"
                            "local n = 0\n"
                            "function set(list) n = n + 1 for i, r in ipairs(list) do r.id, r.number = r.id or 'r', "
                            "r.number or 3 r.hook = r.hook or 'promotion'\n"
                            "  r.source = ('return { hook = %q, name = %q, run = function(input, config) %s end "
                            "}'):format(r.hook, 'Rule', r.body) end\n"
                            "  assert(rules.publish('t', n, list)) return assert(rules.pin('t')) end\n"
                            "function rule(body, hook) return set{{body=body, hook=hook}} end\n"
                            "function same(got, want) if got ~= want then error(('%s, not %s'):format(tostring(got), "
                            "tostring(want)), 2) end end\n"
                            "function source(quote, id) local sum = 0 for _, a in ipairs(quote.adjustments) do if "
                            "a.source_id == id then sum = sum + a.amount end end return sum end\n");
}

static int close_state(void **state) {
    (void)state;
    lua_close(L);
    rules_close();
    return rmdir(dir);
}

static void run(const char *text) {
    if (luaL_dostring(L, text)) {
        if (lua_istable(L, -1)) lua_getfield(L, -1, "message");
        fail_msg("%s", lua_tostring(L, -1));
    }
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
    run("local function bare() local input = gamer() input.coupons, input.points, input.promotions = nil, nil, nil "
        "return input end\n"
        "local function priced(operations) return assert(pricing.quote(bare(), rule('return { operations = ' .. "
        "operations .. ' }'))) end\n"
        "local q = priced(\"{{op='line_percent', line_id='l2', bps=5000, units=1, label='Half'}}\")\n"
        "same(source(q, 'r'), 645000) same(q.rule_runs[1].outcome, 'ok') same(q.rule_runs[1].operations, 1)\n"
        "same(q.rule_runs[1].number, 3) same(q.rule_runs[1].instructions >= 0, true)\n"
        "local row for _, a in ipairs(q.adjustments) do if a.source_id == 'r' then row = a end end\n"
        "same(row.kind, 'script') same(row.label, 'Half') same(row.version, 3) same(row.level, 'line')\n"
        "q = assert(pricing.quote(bare(), rule([[\n"
        "  local function same(got, want) if got ~= want then error(tostring(got) .. ', not ' .. tostring(want), 2) "
        "end "
        "end\n"
        "  same(input.hook, 'promotion') same(input.currency.code, 'VND') same(input.cart.net, 29720000)\n"
        "  same(input.cart.id, 'cart') same(input.cart.item_count, 6) same(#input.cart.lines, 4)\n"
        "  same(input.cart.lines[1].attributes.colour, 'black') same(input.cart.lines[2].attributes.colour, nil)\n"
        "  same(input.customer.tier.name, 'Gold') same(input.customer.groups[1], 'vip') same(input.tenant.country, "
        "'VN')\n"
        "  same(input.cart.lines[3].discounts[1].kind, 'bundle') same(input.cart.lines[3].discounts[1].amount, 51735)\n"
        "  same(input.shipping.address.city, 'Hanoi') same(input.now.wday, 2)\n"
        "  same(input.cart.lines[1].purchase_type, 'one_time') same(input.cart.lines[1].vendor_id, nil)\n"
        "  same(input.cart.lines[1].category_ids[1], 'phones') same(input.subject.promotion, nil)\n"
        "  same(money.sum(input.cart.lines, 'net'), input.cart.net)\n"
        "  local names = {} for name in pairs(input.cart.lines[1]) do names[#names + 1] = name end\n"
        "  same(table.concat(names, ' '), 'attributes category_ids discounts gross id is_gift net product_id "
        "properties purchase_type qty tag_ids unit weight_g')\n"
        "  return nil, 'seen']])))\n"
        "same(q.rule_runs[1].message, nil) same(q.rule_runs[1].reason, 'seen')\n"
        "for _, bad in ipairs{\n"
        "  \"{{op='line_percent', line_id='l2', bps=5000}, {op='line_amount', line_id='l2', amount=1000.5}}\",\n"
        "  \"{{op='line_amount', line_id='l2', amount=0/0}}\", \"{{op='line_amount', line_id='l2', amount=-1}}\",\n"
        "  \"{{op='line_amount', line_id='nowhere', amount=1}}\", \"{{op='line_amount', amount=1}}\",\n"
        "  \"{{op='line_amount', line_id='l2', amount=1, colour='red'}}\", \"{{op='steal'}}\", '{{}}', '{true}', "
        "\"'all of it'\",\n"
        "  '{{op=\"order_percent\", bps=10001}}', \"{{op='line_amount', line_id='l2', amount='5'}}\",\n"
        "  \"{{op='order_amount', amount=1, line_ids={}}}\", \"{{op='line_percent', line_id='l2', bps=1, units=0}}\",\n"
        "  \"{{op='line_percent', line_id='l2', bps=1, [1]='x'}}\", \"{{op='gift_line', product_id='x', qty=11}}\",\n"
        "  \"{{op='line_amount', line_id='l2', amount=2^60}}\",\n"
        "  '(function() local t = {} for i = 1, 201 do t[i] = {op=\"line_amount\", line_id=\"l2\", amount=1} end "
        "return t end)()',\n"
        "  '(function() local t = {} t[1] = t return t end)()',\n"
        "} do\n"
        "  local q, noted = priced(bad)\n"
        "  for _, t in ipairs(q.trace) do noted = noted or t.rule == 'r' and t.note == 'invalid_result' end\n"
        "  same(source(q, 'r'), 0) same(noted, true) same(q.rule_runs[1].outcome, 'invalid_result')\n"
        "end\n"
        "same(priced(\"{{op='gift_line', product_id='cable'}}\").wanted[1].product_id, 'cable')\n"
        "same(priced(\"{{op='order_amount', amount=9e15}}\").merchandise, 0)\n");
}

static void a_rule_sees_nothing_of_what_another_wrote(void **state) {
    (void)state;
    run(gamer);
    run("local spoil = [[input.cart.lines[1].qty = 99 input.cart.net = 1 input.now.wday = 9 input.cart.lines[2] = nil\n"
        "  input.customer.groups[1] = 'thief' input.cart.lines[1].category_ids[1] = 'x' input.shipping.address.city = "
        "'Y'\n"
        "  return nil, 'spoilt ' .. input.cart.lines[1].qty]]\n"
        "local look = [[return nil, table.concat({input.cart.lines[1].qty, input.cart.net, input.now.wday, "
        "#input.cart.lines,\n"
        "  input.customer.groups[1], input.cart.lines[1].category_ids[1], input.shipping.address.city}, ' ')]]\n"
        "local q = assert(pricing.quote(gamer(), set{{id='a', priority=2, body=spoil}, {id='b', body=look}}))\n"
        "same(q.rule_runs[1].reason, 'spoilt 99')\n"
        "same(q.rule_runs[2].reason, '1 29720000 2 4 vip phones Hanoi')\n");
}

/* Views are handed out again, to the next rule and in the next quote: whichever way one was written to. */
static void views_are_clean_for_the_next_rule_and_the_next_quote(void **state) {
    (void)state;
    run(gamer);
    run("local ways = {'input.hook = 1 input.cart = nil', 'input.now.hour = 77', 'table.insert(input.cart.lines[1], "
        "1)',\n"
        "  'table.insert(input.cart.lines, 1, {}) table.remove(input.cart.lines, 3)',\n"
        "  'for k in pairs(input.cart.lines[1]) do input.cart.lines[1][k] = 0 end',\n"
        "  'for k in pairs(input) do input[k] = 0 end',\n"
        "  'local l = input.cart.lines for i = 1, #l do l[i] = l[1] end', 'input.cart.lines = {}',\n"
        "  'table.sort(input.cart.lines, function(a, b) return a.id > b.id end)',\n"
        "  'schema.string(input.cart)', 'schema.list(schema.string, input.cart.lines[2])',\n"
        "  'text.template(\"{qty}\", input.cart.lines[1]) input.cart.lines[1].qty = 5',\n"
        "  'input.cart.lines[1].qty = 9 error(1)', 'input.cart.lines[1].nothing_such = 9',\n"
        "  'for _, l in ipairs(input.cart.lines) do l.net = 0 end while true do end'}\n"
        "local look = [[local c, t = input.cart, {} for i, l in ipairs(c.lines) do t[i] = l.id .. l.qty .. l.net end\n"
        "  return nil, table.concat({input.hook, c.net, input.now.hour, #c.lines, #c.lines[1], table.concat(t, '+'),\n"
        "  tostring(pcall(function() return input.cart.lines[1].nothing_such end)),\n"
        "  tostring(pcall(function() return c.kind end)), tostring(pcall(function() return c.lines[2].item end))}, ' "
        "')]]\n"
        "local want = assert(pricing.quote(gamer(), rule(look))).rule_runs[1].reason\n"
        "same(want:match('false false false$'), 'false false false')\n"
        "for i, way in ipairs(ways) do\n"
        "  local rules = set{{id='a', priority=2, body=way}, {id='b', body=look}}\n"
        "  for again = 1, 2 do\n"
        "    local q = assert(pricing.quote(gamer(), rules))\n"
        "    same(way .. (q.rule_runs[2].reason or q.rule_runs[2].message), way .. want)\n"
        "  end\n"
        "  local other = gamer() other.lines[1].qty = 2\n"
        "  local seen = assert(pricing.quote(other, rules)).rule_runs[2].reason\n"
        "  same(seen ~= want and seen ~= nil, true)\n"
        "end\n");
}

static void an_unknown_field_is_an_error_with_the_nearest_name(void **state) {
    (void)state;
    run(gamer);
    run("local function says(body, words)\n"
        "  local r = assert(pricing.quote(gamer(), rule(body))).rule_runs[1]\n"
        "  if r.outcome ~= 'error' or not r.message:find(words, 1, true) then error(r.outcome .. ' ' .. "
        "tostring(r.message), 2) end\n"
        "  same(r.line ~= nil, true)\n"
        "end\n"
        "says('return input.cart.lnes', \"unknown_field: input.cart has no field 'lnes'; did you mean 'lines'?\")\n"
        "says('return input.carts', \"input has no field 'carts'; did you mean 'cart'?\")\n"
        "says('return input.cart.lines[1].quantty', \"input.cart.lines[] has no field 'quantty'\")\n"
        "says('return input.cart.lines[1].prodct_id', \"did you mean 'product_id'?\")\n"
        "says('return input.customer.tier.nam', \"did you mean 'name'?\")\n"
        "says('return input.customer.email', \"input.customer has no field 'email'\")\n"
        "says('return input.subject.cart', \"input.subject has no field 'cart'\")\n");
}

static void rules_of_a_quote_share_a_budget_and_a_failing_one_has_its_policy(void **state) {
    (void)state;
    run(gamer);
    run("local list = {}\n"
        "for i = 1, 14 do list[i] = {id=('r%02d'):format(i), priority=-i, body='for i = 1, 75000 do local x = i end'} "
        "end\n"
        "list[15] = {id='last', priority=-900, body='return {}', on_error='block'}\n"
        "local q = assert(pricing.quote(gamer(), set(list)))\n"
        "local outcomes, used = {}, 0\n"
        "for _, r in ipairs(q.rule_runs) do outcomes[r.outcome] = (outcomes[r.outcome] or 0) + 1 used = used + "
        "r.instructions end\n"
        "same(outcomes.ok, 13) same(outcomes.budget, 2) same(used, 2000000) same(q.blocked_by, 'last')\n"
        "same(q.total, pricing.quote(gamer()).total)\n"
        "local plain = gamer() plain.coupons, plain.points, plain.promotions = nil, nil, nil\n"
        "q = assert(pricing.quote(plain, set{{body='while true do end', on_error='fallback',\n"
        "  fallback='[{\"op\":\"line_amount\",\"line_id\":\"l2\",\"amount\":1000}]'}}))\n"
        "same(q.rule_runs[1].outcome, 'limit_instructions') same(source(q, 'r'), 1000) same(q.blocked_by, nil)\n"
        "q = assert(pricing.quote(plain, set{{body='while true do end', on_error='fallback', "
        "fallback='[{\"op\":\"steal\"}]'}}))\n"
        "same(source(q, 'r'), 0)\n"
        "q = assert(pricing.quote(plain, set{{body=\"local s = 'x' while true do s = s .. s end\"}, {id='s', body="
        "\"return {operations={{op='line_amount', line_id='l2', amount=7}}}\"}}))\n"
        "same(q.rule_runs[1].outcome, 'limit_heap') same(source(q, 's'), 7)\n"
        "same(pricing.quote(gamer()).total, 27692500)\n");
}

static void tax_rules_override_the_lines_they_name(void **state) {
    (void)state;
    run(gamer);
    run("local function taxed(answer)\n"
        "  return assert(pricing.quote(gamer(), rule('return ' .. answer, 'tax.resolve'))).tax\n"
        "end\n"
        "same(taxed('nil'), 2517500)\n"
        "same(taxed('input.subject.candidates'), 2517500)\n"
        "same(taxed([[input.subject.candidates[1].rate_ppm == 100000 and input.subject.lines[1].net == 21868710 and\n"
        "  input.subject.address.country == 'VN' and input.subject.customer.groups[1] == 'vip' and {{line='l1', "
        "rate_ppm=0}} or nil]]), 2517500 - 2186871)\n"
        "same(taxed(\"{{line='l1', rate_ppm=0, name='Free'}}\"), 2517500 - 2186871)\n"
        "same(taxed(\"{{line='shipping', rate_ppm=200000}}\"), 2517500 + 4500)\n"
        "for _, bad in ipairs{\"{{line='l1', rate_ppm=1000001}}\", \"{{line='l9', rate_ppm=0}}\", \"{{line='l1'}}\", "
        "\"'none'\"} do\n"
        "  same(taxed(bad), 2517500)\n"
        "end\n");
}

static void forms_leave_out_what_they_do_not_name(void **state) {
    (void)state;
    run("local form = rules.form({fields={user={fields={id='string', groups={item='string'}, extra='any'}}}})\n"
        "local function answer(body, input)\n"
        "  local s = rule(body, 'auth.login_policy') local r = s:list('auth.login_policy')[1]\n"
        "  return s:run(r.index, input, form)\n"
        "end\n"
        "local input = {user={id='u', password_hash='secret', groups={'a', 'b'}, extra={deep={1}}}}\n"
        "same(answer('return input.user.id .. #input.user.groups .. input.user.extra.deep[1]', input), 'u21')\n"
        "local out, failure = answer('return input.user.password_hash', input)\n"
        "same(out, nil) same(failure.outcome, 'error')\n"
        "same(failure.message, \"unknown_field: input.user has no field 'password_hash'\")\n"
        "local out, info = answer('return input.user', {}) same(out, nil) same(info.outcome, 'ok')\n"
        "same(select(2, answer('return 1', {user=5})).outcome, 'error')\n"
        "same(pcall(rules.form, {fields={a={fields={}}}, [1]=2}), true)\n"
        "local m = rule('return 1'):describe(1) same(m.hook, 'promotion') same(m.run, true)\n"
        "local g = rules.globals() same(g.pcall, true) same(g.string.find, true) same(g.string.dump, nil) same(g.os, "
        "nil)\n"
        "same(g.text.fold, true) same(g.lib, true)\n");
}

static void rules_set_prices_of_units_and_bundles(void **state) {
    (void)state;
    run(gamer);
    run("local both = set{{id='a', priority=2, hook='price.lines', body=[[\n"
        "  local units = {}\n"
        "  for i, l in ipairs(input.subject.lines) do\n"
        "    assert(l.id == input.cart.lines[i].id and l.unit == input.cart.lines[i].unit)\n"
        "    if l.id == 'l1' then assert(l.list == 25000000 and l.sale == nil and #l.breaks == 0) end\n"
        "  end\n"
        "  units[input.subject.lines[1].id] = input.subject.lines[1].list - 1000000\n"
        "  return { units = units, label = 'Wholesale' } ]]},\n"
        " {id='b', hook='price.lines', body=[[ return { units = { l1 = 1, l2 = 1000000 } } ]]}}\n"
        "local input = gamer() input.promotions, input.coupons, input.points = nil, nil, nil\n"
        "local q = assert(pricing.quote(input, both))\n"
        "same(q.lines[1].unit, 24000000) same(q.lines[1].price_label, 'Wholesale')\n"
        "same(q.lines[2].unit, 1000000) same(q.lines[2].gross, 3000000)\n"
        "same(q.subtotal, 24000000 + 3000000 + 390000 + 590000)\n"
        "same(q.trace[1].stage, 1) same(q.trace[1].rule, 'a') same(q.trace[1].before - q.trace[1].after, 1000000)\n"
        "same(q.trace[2].rule, 'b') same(q.trace[2].before - q.trace[2].after, 870000)\n"
        "same(#q.rule_runs, 2) same(q.rule_runs[1].operations, 1) same(q.rule_runs[2].operations, 2)\n"
        /* Free is a price. */
        "q = assert(pricing.quote(input, rule('return { units = { l1 = 0, l2 = 0, l3 = 0, l4 = 0 } }', "
        "'price.lines')))\n"
        "same(q.subtotal, 0) same(q.total, q.shipping.net + q.tax)\n"
        "local plain = pricing.quote(input).total\n"
        "local function refused(answer, hook)\n"
        "  local q = assert(pricing.quote(input, rule('return ' .. answer, hook)))\n"
        "  same(q.rule_runs[1].outcome, 'invalid_result') same(q.total, plain)\n"
        "  return q.rule_runs[1].message\n"
        "end\n"
        "for _, answer in ipairs{'{units={l1=-1}}', '{units={l1=0.5}}', '{units={nowhere=1}}', '{units={l1=9e15}}', "
        "'{units=3}',\n"
        "  '{units={[1]=5}}', '{prices={}}', '7', '{units={l1=true}}', \"{units={l1=1}, label=('x'):rep(81)}\"} do\n"
        "  refused(answer, 'price.lines')\n"
        "end\n"
        "for _, answer in ipairs{'{price=-1}', '{price=1.5}', '{price=9e15}', '{}', '{cost=1}', '3'} do "
        "refused(answer, 'bundle.price') end\n"
        "same(pricing.quote(input, rule('return nil', 'price.lines')).total, plain)\n"
        "same(pricing.quote(input, rule('return {units={}}', 'price.lines')).total, plain)\n"
        "q = assert(pricing.quote(input, rule([[ local s = input.subject\n"
        "  assert(s.qty == 1 and #s.components == 2 and s.components[1].gross + s.components[2].gross == 980000)\n"
        "  assert(s.bundle.price == 850000)\n"
        "  return { price = s.bundle.price - 50000 } ]], 'bundle.price')))\n"
        "same(pricing.quote(input).merchandise - q.merchandise, 50000)\n"
        "same(q.adjustments[1].kind, 'bundle') same(q.adjustments[1].amount, 180000)\n"
        /* A rule makes a bundle dearer only up to its parts. */
        "q = assert(pricing.quote(input, rule('return { price = 2000000 }', 'bundle.price')))\n"
        "same(q.merchandise - pricing.quote(input).merchandise, 130000)\n"
        "q = assert(pricing.quote(input, set{{hook='bundle.price', on_error='block', body='error(\"no\")'}}))\n"
        "same(q.blocked_by, 'r') same(q.total, plain)\n");
}

static void rules_offer_shipping_and_put_items_into_classes(void **state) {
    (void)state;
    run(gamer);
    run("local input = gamer() input.promotions, input.coupons, input.points = nil, nil, nil\n"
        "input.lines[2].warehouse_id = 'south'\n"
        "input.shipping.methods[2] = {id='x', name='Express', zone_id='z', base=90000, estimated_days=1}\n"
        "input.shipping.list = true\n"
        "local plain = assert(pricing.quote(input))\n"
        "same(#plain.shipping.offers, 2) same(plain.shipping.offers[1].id, 'm') same(plain.shipping.charge, 80000)\n"
        "same(plain.shipping.offers[2].amount, 180000)\n"
        /* Each parcel is asked about; what a rule does not name stays; a list may be turned round. */
        "local q = assert(pricing.quote(input, set{{id='a', priority=2, hook='shipping.rates', body=[[\n"
        "  local s = input.subject\n"
        "  assert(#s.methods == 2 and s.methods[1].id == 'm' and s.subtotal == 29720000)\n"
        "  assert(s.address.country == 'VN' and s.address.city == 'Hanoi' and s.customer.groups[1] == 'vip')\n"
        "  if s.parcel.warehouse_id == 'south' then assert(s.parcel.weight_g == 300 and s.parcel.net == 3870000) end\n"
        "  return { { id = 'x', name = 'By air', price = s.methods[2].price + 7 }, s.methods[1] } ]]},\n"
        "  {id='b', hook='shipping.rates', body=[[ local s = input.subject\n"
        "  if s.parcel.warehouse_id ~= 'south' then return nil, 'not there' end\n"
        "  assert(s.methods[1].name == 'By air')\n"
        "  s.methods[1].price = 1 return s.methods ]]}}))\n"
        "same(q.shipping.offers[1].name, 'By air') same(q.shipping.offers[1].amount, 90008)\n"
        "same(q.shipping.offers[2].amount, 80000) same(q.shipping.charge, 80000) same(#q.rule_runs, 4)\n"
        "input.shipping.method_id = 'x'\n"
        "q = assert(pricing.quote(input, rule([[ return { { id = 'x', price = 50001 } } ]], 'shipping.rates')))\n"
        "same(q.shipping.method_id, 'x') same(q.shipping.net, 100002) same(q.groups[1].net + q.groups[2].net, 100002)\n"
        "same(#q.shipping.offers, 1) same(q.total - q.tax, 29720000 + 100002)\n"
        "q = assert(pricing.quote(input, rule([[ return { { id = 'm' }, { id = 'x', hidden = true } } ]], "
        "'shipping.rates')))\n"
        "same(q.shipping.reason, 'method_not_available') same(q.shipping.net, 0)\n"
        "input.shipping.method_id = nil\n"
        "q = assert(pricing.quote(input, rule('return {}', 'shipping.rates')))\n"
        "same(q.shipping.reason, 'nothing_offered') same(q.shipping.known, false) same(q.shipping.net, 0)\n"
        "for _, answer in ipairs{\"{{id='m', price=-1}}\", \"{{id='m', price=0.5}}\", \"{{id='z'}}\", \"{{id='m'}, "
        "{id='m'}}\",\n"
        "  \"{{price=1}}\", \"{{id='m', price=9e15}}\", \"{m={id='m'}}\", '7', '{7}', \"{{id='m', cost=1}}\",\n"
        "  \"{{id='m', name=('x'):rep(121)}}\"} do\n"
        "  q = assert(pricing.quote(input, rule('return ' .. answer, 'shipping.rates')))\n"
        "  same(q.rule_runs[1].outcome, 'invalid_result') same(q.total, plain.total)\n"
        "end\n"
        /* Classes: once for each item, whatever the lines. */
        "input = gamer() input.promotions, input.coupons, input.points = nil, nil, nil\n"
        "input.lines[5] = {id='l5', product_id='phone', qty=1, price=25000000}\n"
        "input.tax.rules[2] = {id='lux', name='Luxury', country='VN', tax_class='luxury', ppm=200000}\n"
        "q = assert(pricing.quote(input, rule([[ local s = input.subject\n"
        "  assert(s.address.country == 'VN' and s.customer.id == 'u')\n"
        "  if s.product.id == 'phone' then assert(s.category.id == 'phones' and s.product.list == 25000000)\n"
        "    return 'luxury' end ]], 'tax.class_for_item')))\n"
        "same(#q.rule_runs, 4) same(q.lines[1].tax, 5000000) same(q.lines[5].tax, 5000000) same(q.lines[2].tax, "
        "387000)\n"
        "same(q.lines[1].tax_class, 'luxury') same(q.trace[1].note, 'applied') same(q.trace[1].rule, 'r')\n"
        "plain = assert(pricing.quote(input))\n"
        "for _, answer in ipairs{'7', \"''\", \"('x'):rep(65)\", '{}', 'true'} do\n"
        "  q = assert(pricing.quote(input, rule('return ' .. answer, 'tax.class_for_item')))\n"
        "  same(q.rule_runs[1].outcome, 'invalid_result') same(q.total, plain.total)\n"
        "end\n");
}

static void a_line_over_two_warehouses_is_priced_whole_and_divided(void **state) {
    (void)state;
    run(gamer);
    run("local input = gamer()\n"
        "local whole = assert(pricing.quote(input))\n"
        "input.lines[2].portions = {{warehouse_id='north', qty=1}, {warehouse_id='south', qty=2}}\n"
        "local q = assert(pricing.quote(input))\n"
        "same(#q.lines, 4) same(q.lines[2].net, whole.lines[2].net) same(q.lines[2].tax, whole.lines[2].tax)\n"
        "same(q.merchandise, whole.merchandise)\n"
        /* The buy-one-get-one of three units holds, though no warehouse ships three. */
        "local p = q.lines[2].portions\n"
        "same(#p, 2) same(p[1].warehouse_id .. p[1].qty, 'north1') same(p[2].warehouse_id .. p[2].qty, 'south2')\n"
        "same(p[1].gross, 1290000) same(p[2].gross, 2580000)\n"
        "same(p[1].net + p[2].net, q.lines[2].net) same(p[1].tax + p[2].tax, q.lines[2].tax)\n"
        "same(p[1].net, money.split(q.lines[2].net, 3, 1)) same(p[1].tax, money.split(q.lines[2].tax, 3, 1))\n"
        "same(p[1].gross - p[1].discount, p[1].net)\n"
        "local off = {0, 0}\n"
        "for _, row in ipairs(q.adjustment_rows) do\n"
        "  if row.line_id == 'l2' then same(row.portions[1] + row.portions[2], row.amount)\n"
        "    off[1], off[2] = off[1] + row.portions[1], off[2] + row.portions[2] else same(row.portions, nil) end\n"
        "end\n"
        "same(off[1], p[1].discount) same(off[2], p[2].discount)\n"
        /* A parcel for each warehouse, with the weight of its units. */
        "same(#q.groups, 3) same(q.groups[2].warehouse_id .. q.groups[2].weight_g, 'north100')\n"
        "same(q.groups[3].warehouse_id .. q.groups[3].weight_g, 'south200')\n"
        "for what, bad in pairs{sum = {{warehouse_id='a', qty=1}, {warehouse_id='b', qty=1}},\n"
        "    twice = {{warehouse_id='a', qty=1}, {warehouse_id='a', qty=2}}, none = {{warehouse_id='a', qty=0}, "
        "{warehouse_id='b', qty=3}}, below = {{warehouse_id='a', qty=-1}, {warehouse_id='b', qty=4}}} do\n"
        "  input.lines[2].portions = bad\n"
        "  local none, err = pricing.quote(input)\n"
        "  same(none, nil) same(err.kind, 'invalid')\n"
        "end\n");
}

static void a_rule_rounds_the_total(void **state) {
    (void)state;
    run(gamer);
    run("local input = gamer() input.cards, input.wallet = nil, nil\n"
        "local plain = assert(pricing.quote(input)).total\n"
        "local function rounded(body) return assert(pricing.quote(input, rule(body, 'currency.round'))) end\n"
        "local q = rounded('assert(input.subject.currency == \"VND\") return math.ceil(input.subject.amount / 10000) * "
        "10000')\n"
        "same(q.total, math.ceil(plain / 10000) * 10000) same(q.cash_rounding, plain - q.total) same(q.due, q.total)\n"
        "same(q.adjustments[#q.adjustments].kind, 'cash_rounding')\n"
        "q = rounded('return input.subject.amount') same(q.total, plain) same(q.cash_rounding, 0)\n"
        /* A twentieth at most, and nothing that is no amount. */
        "for _, answer in ipairs{'0', '-1', 'input.subject.amount * 2', 'input.subject.amount + 0.5', \"'x'\", '{}', "
        "'1/0'} do\n"
        "  q = rounded('return ' .. answer) same(q.total, plain) same(q.rule_runs[1].outcome, 'invalid_result')\n"
        "end\n"
        "input.rounding_step = 5000\n"
        "q = rounded('return nil') same(q.total % 5000, 0)\n"
        "q = rounded('return input.subject.amount') same(q.total, plain)\n");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(money_parses_and_formats),
        cmocka_unit_test(money_divides_and_splits),
        cmocka_unit_test(the_worked_example_comes_through),
        cmocka_unit_test(faults_of_the_input_name_the_member),
        cmocka_unit_test(promotion_rules_see_the_snapshot_and_are_checked),
        cmocka_unit_test(a_rule_sees_nothing_of_what_another_wrote),
        cmocka_unit_test(views_are_clean_for_the_next_rule_and_the_next_quote),
        cmocka_unit_test(an_unknown_field_is_an_error_with_the_nearest_name),
        cmocka_unit_test(rules_of_a_quote_share_a_budget_and_a_failing_one_has_its_policy),
        cmocka_unit_test(forms_leave_out_what_they_do_not_name),
        cmocka_unit_test(tax_rules_override_the_lines_they_name),
        cmocka_unit_test(rules_set_prices_of_units_and_bundles),
        cmocka_unit_test(rules_offer_shipping_and_put_items_into_classes),
        cmocka_unit_test(a_line_over_two_warehouses_is_priced_whole_and_divided),
        cmocka_unit_test(a_rule_rounds_the_total),
    };
    return cmocka_run_group_tests(tests, open_state, close_state);
}
