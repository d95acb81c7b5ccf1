// Asks http-cache-semantics (npm) about many answers at once. Standard input: {"now": seconds, "ages": [seconds], "cases": [{method, request,
// status, response}]}; standard output: for each case and age, whether its cache would send the copy without asking the server.
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'

const CachePolicy = createRequire(process.argv[2])('http-cache-semantics')
const { now, ages, cases } = JSON.parse(readFileSync(0, 'utf8'))
let moment = now
class Policy extends CachePolicy {
  now () { return moment * 1000 }
}
const verdicts = cases.map(({ method, request, status, response }) => {
  const asked = { method, url: '/x', headers: request }
  moment = now
  const policy = new Policy(asked, { status, headers: response }, { shared: true })
  return ages.map(age => {
    moment = now + age
    return policy.storable() && policy.satisfiesWithoutRevalidation(asked)
  })
})
process.stdout.write(JSON.stringify(verdicts))
