-- Requests the paths in the file named by the first argument, in turn, with the second argument as
-- Accept; reports as JSON.

local requests, at = {}, 0

function init(args)
   for path in io.lines(args[1]) do
      requests[#requests + 1] = wrk.format("GET", path, {Accept = args[2]})
   end
end

function request()
   at = at % #requests + 1
   return requests[at]
end

function done(summary, latency, _)
   local wrong = summary.errors
   io.write(string.format(
      '\n{"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "errors": %d}\n',
      summary.requests, summary.duration / 1e6,
      latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
      wrong.connect + wrong.read + wrong.write + wrong.status + wrong.timeout))
end
