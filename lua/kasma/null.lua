-- The one null: JSON null, SQL NULL as a parameter, Redis nil. Outside the program (pure specs under plain LuaJIT) there is
-- no core.json; a value of its own stands in.
local found, json = pcall(require, "core.json")
if found then return json.null end
return newproxy(false)
