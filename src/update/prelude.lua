-- Runs before each script: what could run for long is written in Lua, whose steps are counted, or
-- counts what it is about to do; what a script must not change is shown through empty tables.
local rawset, rawget, setmetatable, error, tostring, type = rawset, rawget, setmetatable, error, tostring, type
local pcall, pairs, ipairs, select = pcall, pairs, ipairs, select
local spend, is_spent, gmatch_step = __spend, __is_spent, __gmatch_step
local string, table = string, table
local format, concat = string.format, table.concat

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

-- Whoever has used up what it may take does not go on: no script catches that.
local function unless_spent(...)
  if is_spent() then error("the script has used up what it may take", 0) end
  return ...
end

local shown = {_VERSION = _VERSION}
for _, name in ipairs({"assert", "error", "getmetatable", "ipairs", "next", "pairs", "rawequal", "rawget",
  "select", "setmetatable", "tonumber", "tostring", "type", "unpack"}) do
  shown[name] = _G[name]
end
shown.pcall = function(...) return unless_spent(pcall(...)) end
-- A handler that Lua calls runs where no steps are counted.
shown.xpcall = function(call, handler)
  local function handled(is_ok, ...)
    if is_ok then return true, ... end
    return false, handler(...)
  end
  return handled(unless_spent(pcall(call)))
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
    __newindex = function(_, name)
      error("Script attempted to create global variable '" .. tostring(name) .. "'", 2)
    end})
end
