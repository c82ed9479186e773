-- The copy of carts in MongoDB, for the pages that search and analyse; no cart, quote or checkout reads it.
local outbox = require("kasma.outbox")
local store = require("modules.cart.store")

outbox.mirror("carts", store.documents)
