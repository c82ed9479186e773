-- A tenant of its own for the run over the API document: prints a line `HEADER_TENANT HEADER_APP OWNER_TOKEN CUSTOMER_TOKEN`.
-- Started by tests/api/test_openapi inside `kasma lua`. The tenant holds one thing of the kinds that most routes ask for.
package.path = "./tests/?.lua;" .. package.path
local shop_of = require("api.shop")
local support = require("api.support")

local shop = support.tenant{ currency = "VND", country = "VN" }
local product = shop_of.product(shop, { name = "Lamp", price = 100000 })
shop_of.stock(shop, product, 1000)
local customer = support.shopper(shop)
shop_of.checkout(shop_of.buyer(shop, product, 1, customer))
io.stdout:write(("%s %s %s %s\n"):format(shop.key, shop.app, shop.owner.cookies.access_token, customer.cookies.access_token))
io.stdout:flush()
return 0
