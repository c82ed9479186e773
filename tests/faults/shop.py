"""A shop to break things under: a fresh tenant with products and stock, guests who buy, and what must be true of its books."""
import itertools
import threading
import time
import uuid

from stage import Broken, Client, Crowd, must, until

PRODUCTS = "/api/ecommerce/products"
ALLOWED = (201, 409, 503)

# Each selects what must not be; the tenant stands for %(t)s.
BOOKS = {
    "a stock row's reserved units are those of its open reservations": """select i.id, i.reserved_quantity,
          sum(r.quantity - r.consumed_qty - r.released_qty) as open
        from warehouse_inventory i left join stock_reservations r on r.tenant_key = i.tenant_key and r.inventory_id = i.id
        where i.tenant_key = %(t)s group by i.tenant_key, i.id
        having i.reserved_quantity <> coalesce(sum(r.quantity - r.consumed_qty - r.released_qty), 0)""",
    "on-hand units are the sum of the movements": """select i.id, i.quantity from warehouse_inventory i
        where i.tenant_key = %(t)s and i.quantity <> (select coalesce(sum(m.delta), 0) from stock_movements m
          where m.tenant_key = i.tenant_key and m.inventory_id = i.id)""",
    "an order that stands has its units reserved": """select o.id, o.order_number from orders o
        where o.tenant_key = %(t)s and o.status <> 'cancelled'
        and (select sum(i.quantity) from order_items i where i.tenant_key = o.tenant_key and i.order_id = o.id) is distinct from (
        select sum(r.quantity - r.released_qty) from stock_reservations r where r.tenant_key = o.tenant_key and r.order_id = o.id)""",
    "a reservation names an order that is there": """select r.id from stock_reservations r
        where r.tenant_key = %(t)s and r.order_id is not null and not exists (select 1 from orders o
          where o.tenant_key = r.tenant_key and o.id = r.order_id)""",
    "a guest has one order at most": """select guest_email, count(*) from orders where tenant_key = %(t)s
        group by guest_email having count(*) > 1""",
    "a checkout has its order, an order its event": """select c.id from checkouts c where c.tenant_key = %(t)s and not exists (
          select 1 from orders o join order_events e on e.tenant_key = o.tenant_key and e.order_id = o.id and e.type = 'placed'
          where o.tenant_key = c.tenant_key and o.checkout_id = c.id)""",
    "an order asked once for its confirmation": """select o.id from orders o where o.tenant_key = %(t)s and (select count(*) from outbox x
        where x.tenant_key = o.tenant_key and x.topic = 'job' and x.payload->>'name' = 'order-confirmation'
        and x.payload->'data'->>'orderId' = o.id::text) <> 1""",
}


class Guest:
    """One guest, one cart, one order: what was asked and what was answered."""

    numbers = itertools.count(1)

    def __init__(self, shop):
        self.shop = shop
        self.name = "g%d" % next(Guest.numbers)
        self.email = self.name + "@guest.test"
        self.key = "order-" + self.name
        self.client = Client(shop.stage.port, shop.tenant)
        self.orders = []

    def add(self, product, quantity=1):
        answer = self.client.post("/sales/cart/add", {"productId": product, "quantity": quantity})
        if answer.status == 201 and "X-Cart-Token" in answer.headers:
            self.client.headers["X-Cart-Token"] = answer.headers["X-Cart-Token"]
            self.client.cookies.clear()
        return answer

    def checkout_request(self, keyed=True):
        body = {"shippingAddress": "1 Long Street", "paymentMethod": "COD", "guestEmail": self.email}
        return ("POST", "/sales/orders/checkout", body, {"X-Idempotency-Key": self.key} if keyed else {})

    def checkout(self, keyed=True):
        answer = self.client.ask(*self.checkout_request(keyed))
        if answer.status == 201:
            self.orders = [order["id"] for order in answer.json["orders"]]
        return answer


class Shop:
    def __init__(self, stage, owner, products=3, stock=100000):
        self.stage, self.owner = stage, owner
        self.tenant = "t" + uuid.uuid4().hex[:10]
        self.staff = Client(stage.port)
        self.staff.headers = dict(owner.headers)
        must(self.staff.post("/tenants", {"tenant_key": self.tenant, "name": "Faults"}))
        self.staff.tenant = self.tenant
        self.warehouse = stage.value("select id from warehouses where tenant_key = '%s'" % self.tenant)
        self.products = [self.new_product("Thing %d" % i) for i in range(products)]
        for product in self.products:
            must(self.adjust(product, stock))

    def new_product(self, name):
        return must(self.create(name))["productId"]

    def create(self, name):
        return self.staff.post(PRODUCTS + "/create", {"name": name, "slug": name.lower().replace(" ", "-"), "price": 120000,
                                                      "description": "<p>" + name + "</p>"})

    def adjust(self, product, quantity, reason="count"):
        body = {"warehouseId": self.warehouse, "productId": product, "quantity": quantity, "reason": reason}
        return self.staff.post("/api/logistics/inventory/adjust", body)

    def guest(self):
        return Guest(self)

    def rows(self, sql):
        return self.stage.rows(sql % {"t": "'%s'" % self.tenant})

    def stock(self, product):
        return self.rows("""select quantity, reserved_quantity, available_quantity from warehouse_inventory
          where tenant_key = %%(t)s and product_id = '%s'""" % product)[0]

    def holds(self):
        """Reservations that no order has claimed."""
        return self.rows("""select id, status, expires_at from stock_reservations
          where tenant_key = %(t)s and order_id is null and status = 'HELD'""")

    def check_books(self, expect):
        for what, sql in BOOKS.items():
            wrong = self.rows(sql)
            expect(not wrong, "%s: %r" % (what, wrong[:3]))

    def check_orders(self, guests, expect):
        """Every order that was answered 201 is there, once, with its reservation; and nobody else's."""
        self.check_books(expect)
        there = {row["id"] for row in self.rows("select id from orders where tenant_key = %(t)s")}
        promised = {order for guest in guests for order in guest.orders}
        expect(promised <= there, "%d acknowledged orders are lost" % len(promised - there))
        return len(promised), len(there)

    def outbox_waits(self):
        return self.rows("select count(*) as n from outbox where tenant_key = %(t)s and sent_at is null")[0]["n"]

    def wait_mails(self, t, seconds, spared=0):
        """Until every order but `spared` has its confirmation; it never has two."""
        orders = self.rows("select count(*) as n from orders where tenant_key = %(t)s")[0]["n"]

        def sent():
            return self.rows("""select count(*) as n from mail_messages
              where tenant_key = %(t)s and template = 'order-confirmation' and state = 'sent'""")[0]["n"]

        until(seconds, lambda: "each order has its mail: %d of %d" % (sent(), orders), lambda: sent() >= orders - spared)
        files = self.stage.mails_to("guest.test")
        mine = {row["recipient"] for row in self.rows("select recipient from mail_messages where tenant_key = %(t)s")}
        twice = [address for address in mine if files.count(address) > 1]
        t.expect(not twice, "mails that went out twice: %r" % twice[:3])
        t.fact("%d mails for %d orders" % (sent(), orders))


class Load:
    """Guests who come one after the other on several threads, until stop(). Each answer is kept with its time."""

    def __init__(self, shop, threads=8):
        self.shop, self.lock = shop, threading.Lock()
        self.guests, self.answers, self.acknowledged = [], [], 0
        self.threads = threads
        self.crowd = Crowd(threads, self.buy)

    def note(self, what, answer):
        with self.lock:
            self.answers.append((time.monotonic(), what, answer))
            if what == "checkout" and answer.status == 201:
                self.acknowledged += 1
        if answer.status in (0, 503):
            time.sleep(0.05)
        return answer

    def buy(self):
        guest = self.shop.guest()
        product = self.shop.products[hash(guest.name) % len(self.shop.products)]
        if self.note("add", guest.add(product)).status == 201:
            with self.lock:
                self.guests.append(guest)
            self.note("checkout", guest.checkout())
        guest.client.close()

    def wait_for(self, more, seconds=20):
        """Until so many more orders are acknowledged."""
        goal = self.acknowledged + more
        until(seconds, lambda: "%d orders more are placed: %s" % (more, self.counts()), lambda: self.acknowledged >= goal)

    def stop(self):
        self.crowd.stop()

    def count(self, status):
        return sum(1 for _, _, answer in self.answers if answer.status == status)

    def counts(self):
        found = {}
        for _, _, answer in self.answers:
            found[answer.status] = found.get(answer.status, 0) + 1
        return " ".join("%s x %d" % (status or "cut", found[status]) for status in sorted(found))

    def check_answers(self, expect, cuts=0):
        """No server error; a 503 says when to come again; not more connections cut than allowed."""
        odd = [(what, answer) for _, what, answer in self.answers if answer.status not in ALLOWED + (0,)]
        expect(not odd, "answers beside 201, 409, 503: %r" % odd[:3])
        mute = [answer for _, _, answer in self.answers if answer.status == 503 and "Retry-After" not in answer.headers]
        expect(not mute, "503 without Retry-After: %r" % mute[:2])
        refused = [answer for _, _, answer in self.answers if answer.status == 409]
        expect(not refused, "refused although there is stock: %r" % refused[:2])
        expect(self.count(0) <= cuts, "%d connections were cut, %d at most may be: %r"
               % (self.count(0), cuts, [answer for _, _, answer in self.answers if answer.status == 0][:3]))

    def repeat_unanswered(self, seconds):
        """As a careful client does: asks again with the same key until it has its order. Answers how many keys stay held."""
        limit = time.monotonic() + seconds
        waiting = [guest for guest in self.guests if not guest.orders]
        while waiting and time.monotonic() < limit:
            for guest in list(waiting):
                answer = guest.checkout()
                if answer.status == 201:
                    waiting.remove(guest)
                elif answer.status not in (503, 409) or (answer.status == 409 and answer.json.get("code") != "in_progress"):
                    raise Broken("repeating %s: %r" % (guest.key, answer))
            time.sleep(0.1)
        return len(waiting)
