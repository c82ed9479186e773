// The peer in Node: the five rules of bench/peers/rules.lua by hand, and the same work around them. node rules.mjs PORT
import { createServer } from 'node:http'

const has = (list, x) => list.includes(x)

const rules = [
  { key: 'promotions/percent_off', config: { bps: 1000, skus: ['SKU-003', 'SKU-004'], label: '10 % off' }, run(input, config) {
    const operations = []
    const all = !config.category && config.skus.length === 0
    const skus = new Set(config.skus)
    for (const line of input.cart.lines) {
      const wanted = all || skus.has(line.sku) || (config.category && has(line.category_ids, config.category))
      if (wanted && !line.is_gift && !line.bundle_id) {
        operations.push({ op: 'line_percent', line_id: line.id, bps: config.bps, label: config.label })
      }
    }
    return operations.length ? { operations } : { reason: 'nothing in the cart takes part' }
  } },
  { key: 'promotions/buy_x_get_y', config: { category: 'tea', buy: 2, free: 1, days: [1, 2, 3, 4, 5, 6, 7], label: 'Buy 2, third free' },
    run(input, config) {
      if (!has(config.days, input.now.wday)) return { reason: 'not today' }
      const units = []
      for (const line of input.cart.lines) {
        const wanted = !config.category || has(line.category_ids, config.category)
        if (wanted && !line.bundle_id && !line.is_gift) {
          for (let n = 0; n < line.qty; n++) units.push({ id: line.id, price: line.unit })
        }
      }
      const free = Math.floor(units.length / (config.buy + config.free)) * config.free
      if (free === 0) return { reason: 'too few items' }
      units.sort((a, b) => a.price - b.price || (a.id < b.id ? -1 : a.id > b.id ? 1 : 0))
      const count = new Map()
      for (let i = 0; i < free; i++) count.set(units[i].id, (count.get(units[i].id) ?? 0) + 1)
      const operations = []
      for (const [id, n] of count) operations.push({ op: 'line_percent', line_id: id, bps: 10000, units: n, label: config.label })
      return { operations }
    } },
  { key: 'promotions/tiered_quantity', config: { steps: [{ from: 5, bps: 500 }, { from: 10, bps: 1000 }],
    label: '{percent} % off from {from}' }, run(input, config) {
    const operations = []
    for (const line of input.cart.lines) {
      let best
      for (const step of config.steps) if (line.qty >= step.from && (!best || step.from > best.from)) best = step
      const wanted = !config.category || has(line.category_ids, config.category)
      if (best && wanted && !line.is_gift && !line.bundle_id) {
        operations.push({ op: 'line_percent', line_id: line.id, bps: best.bps,
          label: config.label.replace('{percent}', best.bps / 100).replace('{from}', best.from) })
      }
    }
    return operations.length ? { operations } : { reason: 'too few of each' }
  } },
  { key: 'promotions/free_shipping', config: { from: 100000, bps: 10000, countries: [], label: 'Free shipping' }, run(input, config) {
    if (config.countries.length > 0 && !has(config.countries, input.shipping.address.country)) return { reason: 'not to this country' }
    if (input.cart.net < config.from) return { reason: 'below the sum' }
    return { operations: [{ op: 'shipping_percent', bps: config.bps, label: config.label }] }
  } },
  { key: 'promotions/customer_tier', config: { tiers: { Gold: 500 }, groups: { vip: 700 }, label: "Members' price" }, run(input, config) {
    let bps = (input.customer.tier && config.tiers[input.customer.tier.name]) || 0
    for (const group of input.customer.groups) bps = Math.max(bps, config.groups[group] ?? 0)
    if (bps === 0) return { reason: 'no member' }
    return { operations: [{ op: 'order_percent', bps, label: config.label }] }
  } },
]

function inputOf(cart) {
  let net = 0
  let items = 0
  const lines = cart.lines.map((l) => {
    const sum = l.price * l.qty
    net += sum
    items += l.qty
    return { id: l.id, product_id: l.product_id, sku: l.sku, qty: l.qty, unit: l.price, gross: sum, net: sum, weight_g: l.weight_g,
      category_ids: l.category_ids, tag_ids: [], is_gift: false, attributes: {}, properties: {}, discounts: [], purchase_type: 'one_time' }
  })
  return { hook: 'promotion', now: { epoch: 1795748400, year: 2026, month: 11, day: 27, hour: 10, min: 0, wday: 5, tz: 'UTC' },
    currency: { code: 'VND', exponent: 0 }, tenant: { id: 'demo', country: 'VN', settings: {} },
    customer: { id: cart.customer, guest: false, groups: [cart.group], first_order: false },
    cart: { id: 'cart', gross: net, net, item_count: items, coupon_codes: [], lines },
    shipping: { address: { country: cart.country }, groups: [] }, subject: {} }
}

const share = (amount, bps) => Math.floor((amount * bps) / 10000 + 0.5)

function price(cart) {
  const input = inputOf(cart)
  let merchandise = input.cart.net
  let shipping = cart.shipping
  const left = input.cart.lines.map((line) => line.net)
  const at = new Map(input.cart.lines.map((line, i) => [line.id, i]))
  const adjustments = []
  for (const rule of rules) {
    let amount = 0
    for (const op of rule.run(input, rule.config).operations ?? []) {
      let off
      if (op.op === 'line_percent') {
        const i = at.get(op.line_id)
        const line = input.cart.lines[i]
        off = share((left[i] / line.qty) * (op.units ?? line.qty), op.bps)
        left[i] -= off
        merchandise -= off
      } else if (op.op === 'order_percent') {
        off = share(merchandise, op.bps)
        merchandise -= off
      } else {
        off = share(shipping, op.bps)
        shipping -= off
      }
      amount += off
    }
    if (amount > 0) adjustments.push({ rule: rule.key, amount })
  }
  return { adjustments, total: merchandise + shipping }
}

function measure(cart) {
  let best = Infinity
  for (let round = 0; round < 300; round++) {
    const began = process.cpuUsage()
    for (let n = 0; n < 200; n++) price(cart)
    const took = process.cpuUsage(began)
    best = Math.min(best, took.user + took.system)
  }
  return best / 200
}

createServer((request, response) => {
  const parts = []
  request.on('data', (part) => parts.push(part))
  request.on('end', () => {
    let answer = { status: 'ok' }
    if (request.url === '/bench/price') answer = price(JSON.parse(Buffer.concat(parts).toString()))
    if (request.url === '/bench/rules') answer = { us: measure(JSON.parse(Buffer.concat(parts).toString())) }
    const body = JSON.stringify(answer)
    response.writeHead(200, { 'Content-Type': 'application/json; charset=utf-8', 'Content-Length': Buffer.byteLength(body) })
    response.end(body)
  })
}).listen(Number(process.argv[2]), '127.0.0.1')
