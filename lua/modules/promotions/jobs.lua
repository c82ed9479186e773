-- Promotions begin and end by themselves; at that moment it is told.
local due = require("kasma.due")
local promotions = require("modules.promotions.service")
local window = require("modules.promotions.window")

due.handler(window.KIND, promotions.on_window)
