-- Runs before each script: what could run for long is written in Lua, whose steps are counted, or
-- counts what it is about to do; what a script must not change is shown through empty tables.
local rawset, rawget, setmetatable, error, tostring, type = rawset, rawget, setmetatable, error, tostring, type
local pcall, pairs, ipairs, select, unpack = pcall, pairs, ipairs, select, unpack
local spend, caught, raise = __spend, __caught, __raise
local gmatch_step, gsub_step = __gmatch_step, __gsub_step
local string, table = string, table
local format, concat, sub, gsub = string.format, table.concat, string.sub, string.gsub
local tonumber = tonumber
-- Below the 200 calls that Lua has room for.
local PROTECTED_DEPTH_MAX = 150
-- As many as a stack of Lua takes.
local UNPACKED_MAX = 8000

local function check(value, want, place, name)
  if type(value) ~= want then
    local got = value == nil and "no value" or type(value)
    error("bad argument #" .. place .. " to '" .. name .. "' (" .. want .. " expected, got " .. got .. ")", 3)
  end
end

string.format = function(text, ...)
  if type(text) == "string" then spend(#text * 8) end
  local made = format(text, ...)
  spend(#made * 8)
  return made
end

string.gmatch = function(text, pattern)
  if type(text) == "number" then text = tostring(text) end
  if type(pattern) == "number" then pattern = tostring(pattern) end
  check(text, "string", 1, "gmatch")
  check(pattern, "string", 2, "gmatch")
  local at = 0
  local function take(next, ...)
    if next == nil then at = #text + 1 return nil end
    at = next
    return ...
  end
  return function()
    if at > #text then return nil end
    return take(gmatch_step(text, pattern, at))
  end
end

-- What replaces is called from here and not out of a function of the process: however deep such calls
-- are, they take nothing of its stack.
local function gsub_by(text, pattern, by, times)
  local is_call, is_anchored = type(by) == "function", sub(pattern, 1, 1) == "^"
  local parts, made, count, at = {}, 0, 0, 0
  local function put(part)
    made = made + 1
    parts[made] = part
  end
  local function replace(start, stop, first, ...)
    if start == nil then return end
    local value
    if is_call then value = by(first, ...) else value = by[first] end
    if not value then
      value = sub(text, start + 1, stop)
    elseif type(value) ~= "string" and type(value) ~= "number" then
      error("invalid replacement value (a " .. type(value) .. ")", 4)
    end
    put(sub(text, at + 1, start))
    put(value)
    count = count + 1
    return start, stop
  end
  while count < times do
    local start, stop = replace(gsub_step(text, pattern, at))
    if start == nil then break end
    at = stop
    if stop == start then
      if start >= #text then break end
      put(sub(text, start + 1, start + 1))
      at = start + 1
    end
    if is_anchored then break end
  end
  put(sub(text, at + 1))
  return concat(parts), count
end

string.gsub = function(text, pattern, by, times)
  local kind = type(by)
  if kind ~= "function" and kind ~= "table" then return gsub(text, pattern, by, times) end
  if type(text) == "number" then text = tostring(text) end
  if type(pattern) == "number" then pattern = tostring(pattern) end
  check(text, "string", 1, "gsub")
  check(pattern, "string", 2, "gsub")
  if times ~= nil then
    times = tonumber(times)
    check(times, "number", 4, "gsub")
  end
  local made, count = gsub_by(text, pattern, by, times or 1 / 0)
  return made, count
end

table.concat = function(list, ...)
  if type(list) == "table" then spend(#list * 32) end
  local made = concat(list, ...)
  spend(#made)
  return made
end

table.insert = function(list, ...)
  check(list, "table", 1, "insert")
  local last, count = #list + 1, select("#", ...)
  if count == 1 then rawset(list, last, (...)) return end
  if count ~= 2 then error("wrong number of arguments to 'insert'", 2) end
  local place, value = ...
  check(place, "number", 2, "insert")
  if place > last then last = place end
  for at = last, place + 1, -1 do rawset(list, at, rawget(list, at - 1)) end
  rawset(list, place, value)
end

table.remove = function(list, place)
  check(list, "table", 1, "remove")
  local last = #list
  if place == nil then place = last end
  check(place, "number", 2, "remove")
  if place < 1 or place > last then return end
  local value = rawget(list, place)
  for at = place, last - 1 do rawset(list, at, rawget(list, at + 1)) end
  rawset(list, last, nil)
  return value
end

table.maxn = function(list)
  check(list, "table", 1, "maxn")
  local most = 0
  for key in pairs(list) do
    if type(key) == "number" and key > most then most = key end
  end
  return most
end

table.foreach = function(list, call)
  for key, value in pairs(list) do
    local result = call(key, value)
    if result ~= nil then return result end
  end
end

table.foreachi = function(list, call)
  for at = 1, #list do
    local result = call(at, rawget(list, at))
    if result ~= nil then return result end
  end
end

local function by_size(a, b) return a < b end

table.sort = function(list, is_less)
  check(list, "table", 1, "sort")
  if is_less ~= nil then check(is_less, "function", 2, "sort") end
  is_less = is_less or by_size
  local count, from, to, width = #list, {}, {}, 1
  for at = 1, count do from[at] = rawget(list, at) end
  -- Runs of twice the width are merged out of two, until there is one.
  while width < count do
    for start = 1, count, 2 * width do
      local left, right, out = start, start + width, start
      local left_end, right_end = right, right + width
      if left_end > count + 1 then left_end = count + 1 end
      if right_end > count + 1 then right_end = count + 1 end
      while left < left_end and right < right_end do
        if is_less(from[right], from[left]) then
          to[out] = from[right]
          right = right + 1
        else
          to[out] = from[left]
          left = left + 1
        end
        out = out + 1
      end
      while left < left_end do to[out] = from[left] left = left + 1 out = out + 1 end
      while right < right_end do to[out] = from[right] right = right + 1 out = out + 1 end
    end
    from, to, width = to, from, 2 * width
  end
  for at = 1, count do rawset(list, at, from[at]) end
end

-- Lua's own adds up the ends in 32 bits, and goes on past its stack if that overflows.
local own_unpack = unpack
local function unpack(list, from, to)
  check(list, "table", 1, "unpack")
  from, to = tonumber(from or 1), tonumber(to or #list)
  check(from, "number", 2, "unpack")
  check(to, "number", 3, "unpack")
  if from > to then return end
  if not (to - from < UNPACKED_MAX and from > -2 ^ 31 and to < 2 ^ 31 - 1) then
    error("too many results to unpack", 2)
  end
  return own_unpack(list, from, to)
end

-- The pcall below this has no place for many results, so they are put aside. Calls within calls are
-- counted: each takes of the stack of the process.
local depth = 0
local function protected(call, ...)
  if type(call) ~= "function" and type(call) ~= "table" then
    return false, "attempt to call a " .. type(call) .. " value"
  end
  if depth >= PROTECTED_DEPTH_MAX then return false, "C stack overflow" end
  local own, results, count = depth, nil, 0
  local function keep(...) results, count = {...}, select("#", ...) end
  depth = own + 1
  local is_ok, why = pcall(function(...) keep(call(...)) end, ...)
  depth = own
  -- An error of what has used up what it may take is raised again: no script catches that.
  if not is_ok then return false, caught(why) end
  return true, unpack(results, 1, count)
end

-- A handler that Lua calls runs where no steps are counted.
local function handled(handler, is_ok, ...)
  if is_ok then return true, ... end
  local is_handled, value = protected(handler, (...))
  if is_handled then return false, value end
  return false, "error in error handling"
end

local shown = {_VERSION = _VERSION}
for _, name in ipairs({"assert", "error", "getmetatable", "ipairs", "next", "pairs", "rawequal", "rawget",
  "select", "setmetatable", "tonumber", "tostring", "type"}) do
  shown[name] = _G[name]
end
shown.unpack = unpack
shown.pcall = function(...)
  if select("#", ...) == 0 then error("bad argument #1 to 'pcall' (value expected)", 2) end
  return protected(...)
end
shown.xpcall = function(call, ...)
  if select("#", ...) == 0 then error("bad argument #2 to 'xpcall' (value expected)", 2) end
  return handled((...), protected(call))
end

local function closed(library)
  return setmetatable({}, {__index = library, __metatable = false, __newindex = function()
    error("Attempt to modify a readonly table", 2)
  end})
end
for _, name in ipairs({"string", "table", "math", "cjson"}) do shown[name] = closed(_G[name]) end
getmetatable("").__metatable = false
local redis = redis
return function(environment, calls)
  rawset(redis, "call", calls.call)
  rawset(redis, "pcall", calls.pcall)
  rawset(environment, "redis", closed(redis))
  rawset(environment, "_G", environment)
  setmetatable(environment, {__metatable = false,
    __index = function(_, name)
      local value = shown[name]
      if value == nil then
        error("Script attempted to access nonexistent global variable '" .. tostring(name) .. "'", 2)
      end
      return value
    end,
    __newindex = function()
      error("Attempt to modify a readonly table", 2)
    end})
end, function(script)
  local value
  local is_ok, why = pcall(function() value = script() end)
  if is_ok then return value end
  if type(why) == "table" and type(rawget(why, "err")) == "string" then raise(rawget(why, "err")) end
  if type(why) == "table" then why = "table" end
  error(why, 0)
end
