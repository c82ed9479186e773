log('a', 1, {}) log.warn('b\
c') for i = 1, 30 do log(i) end log(('x'):rep(1000)) return {}