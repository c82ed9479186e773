 local s = secret('a') local ok, v = pcall(kv.get, 'a', { s }) for i = 1, 9 do v = kv.get(i, v) end return { v, tostring(s) }
