-- What the catalogue tells the world.
local schema = require("kasma.schema")
local events = require("kasma.events")

local Changed = { variantIds = schema.array(schema.uuid()), fields = schema.array(schema.string()) }

events.declare("product.changed", { of = "product", when = "it is created; fields are the members that were given", data = Changed })
events.declare("product.deleted", { of = "product", when = "it is deleted, with its variants", data = Changed })
