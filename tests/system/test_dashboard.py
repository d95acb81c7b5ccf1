"""The page in a real browser: what an operator does with keyboard and mouse happens to the traffic."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import axe_playwright_python
import bed
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js").read_text()
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
    "--disable-extensions", "--no-first-run",
]  # fmt: skip
VIEWER = "a-token-that-may-only-look"
DESK, PHONE = (1360, 900), (360, 780)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = bed.program("chromium")
    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=chromium, args=QUIET, headless=True)
        yield running
        running.close()


@pytest.fixture(scope="module")
def proxy_under_page(nginx_a, nginx_b) -> Iterator[bed.Proxy]:
    digest = hashlib.sha256(VIEWER.encode()).hexdigest()
    made = bed.Proxy(
        f'[admin.tokens.viewer]\nrole = "view"\nsha256 = "{digest}"\n'
        f'[pools.web]\nservers = {json.dumps([nginx_a.address, nginx_b.address])}\nhealth = "GET /health"\n[sites."*"]\n"/" = "web"\n'
        f"[pools.canary]\nservers = {json.dumps([nginx_b.address])}\n"
        '[sites."shop.example"]\n"/" = { split = { web = 9, canary = 1 } }\n',
        workers=2,
    )
    made.wait_healthy("web")
    yield made
    made.stop()
    log = made.log
    made.close()
    assert "Traceback" not in log, log[-6000:]


class Operator:
    """Somebody at the page; `faults` collects what a browser's console would show."""

    def __init__(self, browser: Browser, proxy: bed.Proxy, size: tuple[int, int] = DESK, scheme: Any = "light") -> None:
        self.proxy = proxy
        self.context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.faults: list[str] = []
        self.asked: set[str] = set()
        self.page.on("console", lambda said: self.faults.append(said.text) if said.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda request: self.asked.add(re.sub(r"^(\w+://[^/]*).*", r"\1", request.url)))
        self.page.goto(self.address)

    @property
    def address(self) -> str:
        return f"http://{bed.HOST}:{self.proxy.admin_port}"

    def enter(self, token: str = "") -> None:
        self.page.get_by_label("Token").fill(token or self.proxy.token)
        self.page.keyboard.press("Enter")
        if not token or token == VIEWER:
            self.page.get_by_role("heading", name="web").wait_for()
            expect(self.page.get_by_text("live", exact=True)).to_be_visible()

    def slider(self, server: str) -> Any:
        return self.page.get_by_role("slider", name=f"Weight of {server} in web")

    def state(self, server: str, name: str) -> Any:
        return self.page.get_by_role("group", name=f"State of {server} in web").get_by_role("button", name=name)

    @property
    def proposal(self) -> Any:
        return self.page.locator("form.proposal")

    def wait_applied(self) -> None:
        expect(self.proposal).to_have_count(0)

    def leave(self) -> None:
        self.context.close()


@pytest.fixture
def operator(browser, proxy_under_page) -> Iterator[Operator]:
    made = Operator(browser, proxy_under_page)
    yield made
    made.leave()


def test_a_wrong_token_is_told_and_the_page_asks_nobody_else(operator: Operator) -> None:
    """A wrong token is said to be wrong; the right one opens and lasts for the tab; nothing is loaded from elsewhere, nothing blocked."""
    operator.enter("wrong")
    expect(operator.page.get_by_role("alert")).to_have_text("The proxy does not know this token.")
    operator.enter()
    expect(operator.page.get_by_text("2 of 3 servers are fine, 1 not checked")).to_be_visible()
    operator.page.reload()
    operator.page.get_by_role("heading", name="web").wait_for()
    assert operator.asked == {operator.address}
    assert [fault for fault in operator.faults if "401" not in fault] == []


def test_a_weight_set_by_keyboard_moves_the_traffic(operator: Operator, nginx_a, nginx_b) -> None:
    """Arrow keys on the slider, Enter, a reason, Enter: 1:1 becomes 1:9 at the servers, on the page and in the journal."""
    operator.enter()
    server = nginx_b.address
    operator.slider(server).focus()
    for _ in range(8):
        operator.page.keyboard.press("ArrowRight")
    expect(operator.proposal).to_contain_text(f"Weight of {server} in web: 1 → 9")
    assert operator.proxy.server("web", server)["weight"]["effective"] == 1, "nothing happens before Apply"
    operator.page.keyboard.press("Enter")
    operator.page.keyboard.type("more for b")
    operator.page.keyboard.press("Enter")
    operator.wait_applied()
    expect(operator.slider(server)).to_be_focused()

    before = [nginx_a.requests(), nginx_b.requests()]
    bed.send_requests(operator.proxy.url + "/", 3000)
    after = [nginx_a.requests(), nginx_b.requests()]
    assert abs(after[1] - before[1] - 2700) <= 30, (before, after)
    row = operator.page.get_by_role("row").filter(has=operator.slider(server))
    expect(row.locator(".share .words")).to_have_text(re.compile(r"^(89|90|91) % of 90 %$"))
    expect(operator.page.locator(".changes li").first).to_contain_text("more for b")
    expect(operator.page.get_by_label(re.compile(r"Requests per second: [1-9]"))).to_be_visible()
    last = operator.proxy.get("/api/v1/changes")["changes"][-1]
    assert (last["by"], last["reason"], last["change"]["after"]) == ("admin", "more for b", 9)
    assert operator.faults == []


def test_drain_ready_add_and_remove_by_click(operator: Operator, nginx_a) -> None:
    """A click drains, a click brings back; a server comes and goes; Escape changes nothing and gives the focus back."""
    operator.enter()
    page, server = operator.page, nginx_a.address
    for label in ("Drain", "Ready"):
        operator.state(server, label).click()
        operator.proposal.get_by_role("button", name=label).click()
        operator.wait_applied()
        expect(operator.state(server, label)).to_have_attribute("aria-pressed", "true")
        assert operator.proxy.server("web", server)["state"] == label.lower()

    operator.state(server, "Maint").click()
    page.keyboard.press("Escape")
    operator.wait_applied()
    expect(operator.state(server, "Maint")).to_be_focused()
    assert operator.proxy.server("web", server)["state"] == "ready"

    new = f"{bed.HOST}:{bed.free_port()}"
    page.get_by_role("button", name="Add server to web").click()
    page.get_by_label("Address").fill("169.254.169.254:80")
    operator.proposal.get_by_role("button", name="Add server").click()
    expect(operator.proposal.get_by_role("alert")).to_contain_text("link-local")
    page.get_by_label("Address").fill(new)
    page.get_by_label("Backup").check()
    page.keyboard.press("Enter")
    operator.wait_applied()
    expect(operator.slider(new)).to_be_visible()
    assert operator.proxy.server("web", new)["backup"] is True
    page.get_by_role("button", name=f"Remove {new}").click()
    operator.proposal.get_by_role("button", name="Remove server").click()
    expect(operator.slider(new)).to_have_count(0)


def test_two_operators_at_once(operator: Operator, nginx_a) -> None:
    """Somebody else's change between looking and applying is shown, nothing is overwritten; applying again is a decision."""
    operator.enter()
    server = nginx_a.address
    operator.page.get_by_role("spinbutton", name=f"Weight of {server} in web, as a number").fill("7")
    operator.proxy.change("web", server, weight=5, reason="the other one")
    operator.proposal.get_by_role("button", name="Apply").click()
    message = operator.proposal.get_by_role("alert")
    expect(message).to_contain_text("Somebody else changed the configuration after you looked.")
    expect(message).to_contain_text(f"by admin: weight of {server} in web: 1 → 5")
    assert operator.proxy.server("web", server)["weight"]["effective"] == 5
    operator.proposal.get_by_role("button", name="Apply all the same").click()
    operator.wait_applied()
    assert operator.proxy.server("web", server)["weight"]["effective"] == 7
    operator.page.get_by_role("button", name=f"Weight of {server} in web: back to the file's 1").click()
    operator.proposal.get_by_role("button", name="Apply").click()
    operator.wait_applied()
    assert operator.proxy.server("web", server)["weight"] == {"configured": 1, "set": None, "effective": 1}


def test_preview_confirm_and_undo(operator: Operator, nginx_a, nginx_b) -> None:
    """Before Apply the proxy says what would happen; a change on trial waits for "Confirm"; "Undo" brings the old value back."""
    operator.enter()
    page, server, proposal = operator.page, nginx_b.address, operator.proposal
    before = operator.proxy.server("web", server)["weight"]["effective"]
    operator.page.get_by_role("spinbutton", name=f"Weight of {server} in web, as a number").fill("3")
    expect(proposal.locator(".preview")).to_contain_text(
        re.compile(rf"{nginx_a.address} \d+ % → 25 %.*{server} \d+ % → 75 %.*closes nothing")
    )
    proposal.get_by_label("Undone if").fill("errors > no")
    proposal.get_by_role("button", name="Apply").click()
    expect(proposal.get_by_role("alert")).to_contain_text("errors")
    proposal.get_by_label("Undone if").fill("")
    proposal.get_by_label("Undone unless confirmed").select_option("5m")
    proposal.get_by_role("button", name="Apply").click()
    operator.wait_applied()
    latest = page.locator(".changes li").first
    expect(latest).to_contain_text("unless confirmed")
    latest.get_by_role("button", name="Confirm").click()
    proposal.get_by_role("button", name="Confirm").click()
    operator.wait_applied()
    expect(latest).not_to_contain_text("unless confirmed")
    latest.get_by_role("button", name="Undo").click()
    expect(proposal).to_contain_text(f"weight of {server} in web: {before} → 3")
    proposal.get_by_role("button", name="Undo").click()
    operator.wait_applied()
    assert operator.proxy.server("web", server)["weight"]["effective"] == before
    expect(page.locator(".changes li.undone")).to_have_count(1)


def test_maintenance_and_split_of_a_site(operator: Operator) -> None:
    """The switch closes one site with 503 and opens it again; a split moves by its number."""
    operator.enter()
    page, proxy, shop = operator.page, operator.proxy, {"Host": "shop.example"}
    switch = page.get_by_role("switch", name="Maintenance of shop.example")
    for apply, is_on, status in (("Begin maintenance", "true", 503), ("End maintenance", "false", 200)):
        switch.click()
        operator.proposal.get_by_role("button", name=apply).click()
        operator.wait_applied()
        expect(switch).to_have_attribute("aria-checked", is_on)
        assert (proxy.fetch(headers=shop)[0], proxy.fetch()[0]) == (status, 200)
    split = page.get_by_role("group", name="Split of shop.example /")
    split.get_by_label("Weight of canary").fill("3")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Reason, for the journal")).to_be_focused()
    page.keyboard.press("Enter")
    operator.wait_applied()
    expect(split).to_contain_text("of 25 %")
    site = next(site for site in proxy.get("/api/v1/sites")["sites"] if site["name"] == "shop.example")
    assert [side["share"] for side in site["routes"][0]["split"]] == [0.75, 0.25]


def test_limits_shifts_lookups_and_the_file(operator: Operator, nginx_a) -> None:
    """One pass over the rest: a limit, a shift from start to stop, explain, why, and live values written into the file."""
    operator.enter()
    page, proxy, proposal, server = operator.page, operator.proxy, operator.proposal, nginx_a.address

    page.get_by_role("button", name=f"Most connections of {server} in web").click()
    proposal.get_by_label("Most connections").fill("99")
    page.keyboard.press("Enter")
    operator.wait_applied()
    assert proxy.server("web", server)["max_connections"] == 99
    expect(page.get_by_role("button", name=f"Most connections of {server} in web")).to_have_text("99")

    page.get_by_role("group", name="Split of shop.example /").get_by_role("button", name="Shift").click()
    proposal.get_by_label("Its share, step by step").fill("30, 20")
    expect(proposal).to_contain_text("shares in per cent that grow")
    proposal.get_by_label("Its share, step by step").fill("20, 60")
    expect(proposal.locator(".preview")).to_contain_text(re.compile(r"canary in shop.example / \d+ % → 20 %"))
    assert proxy.get("/api/v1/shifts")["shifts"] == [], "nothing happens before Start"
    proposal.get_by_role("button", name="Start the shift").click()
    operator.wait_applied()
    shifts = page.get_by_role("region", name="Shifts")
    expect(shifts).to_contain_text("running, step 1 of 2")
    shifts.get_by_role("button", name="Stop shift 1").click()
    proposal.get_by_role("button", name="Stop and go back").click()
    operator.wait_applied()
    expect(shifts).to_contain_text("stopped")

    page.get_by_text("Where would this request go?").click()
    page.get_by_label("Whole URL").fill("http://shop.example/x")
    page.keyboard.press("Enter")
    expect(page.locator(".steps").first).to_contain_text("host 'shop.example' is site 'shop.example'")
    assert proxy.fetch(headers={"Host": "a b"})[0] == 400
    page.get_by_text("What happened to this request?").click()
    page.locator(".latest button").first.click()
    expect(page.locator(".story").first).to_contain_text("bad_host")
    assert axe(page) == []

    differences = page.get_by_role("region", name="Not in the file")
    expect(differences).to_contain_text(re.compile(rf"pools.web.{server}.max_connections.*256.*99"))
    differences.get_by_role("button", name="Adopt").click()
    expect(proposal.locator(".edit")).to_contain_text("max_connections")
    assert axe(page) == []
    proposal.get_by_role("button", name="Write the file").click()
    operator.wait_applied()
    expect(differences).to_contain_text("The file says what is running.")
    assert "max_connections=99" in proxy.config_file.read_text().replace(" ", "").replace('"', "")
    assert [fault for fault in operator.faults if "400" not in fault] == []


def test_draining_shows_how_far_it_is(browser, proxy, part) -> None:
    """Of a server that leaves, the page says how many connections are to finish, and when none is."""
    with bed.closing(bed.socket.create_server((bed.HOST, 0))) as listener:
        address, port = f"{bed.HOST}:{listener.getsockname()[1]}", bed.free_port()
        made = proxy(f'[pools.web]\nservers = ["{address}", "{bed.HOST}:1 backup"]\n[tcp."{bed.HOST}:{port}"]\npool = "web"\n')
        sessions = [(bed.socket.create_connection((bed.HOST, port), timeout=10), listener.accept()[0]) for _ in range(2)]
        operator = Operator(browser, made)
        try:
            operator.enter()
            made.wait_for(lambda: made.server("web", address)["connections"] == 2, "both sessions")
            operator.state(address, "Drain").click()
            operator.proposal.get_by_role("button", name="Drain").click()
            operator.wait_applied()
            row = operator.page.get_by_role("row").filter(has=operator.slider(address))
            expect(row).to_contain_text("2 to finish")
            for end in sessions[0]:
                end.close()
            expect(row).to_contain_text("1 to finish")
            expect(row.get_by_role("progressbar")).to_have_js_property("value", 1)
            for end in sessions[1]:
                end.close()
            expect(row).to_contain_text("idle")
        finally:
            operator.leave()


def test_an_upgrade_and_new_workers_are_watched_to_their_end(browser, proxy, nginx_a) -> None:
    """Started elsewhere: the page tells each, why one failed, and goes on by itself on the new version."""
    config = f'[pools.web]\nservers = ["{nginx_a.address}"]\n[sites."*"]\n"/" = "web"\n'
    made = proxy(config, workers=2)
    made.wait_for(lambda: len(made.workers()) == 2, "both workers")
    operator = Operator(browser, made)
    operator.enter()
    workers = operator.page.get_by_role("region", name="Workers")
    expect(workers.locator(".renewal")).to_have_count(0)
    made.ask("POST", "/api/v1/workers/restart", {})
    expect(workers.locator(".renewal")).to_contain_text("2 of 2 workers replaced", timeout=20_000)

    made.write(config.replace("pools.web", "pools.wrong"))
    made.ask("POST", "/api/v1/upgrade", {})
    expect(workers).to_contain_text(re.compile("Upgrade: failed, nothing was changed: .*wrong"), timeout=20_000)
    made.write(config)
    made.ask("POST", "/api/v1/upgrade", {})
    expect(workers).to_contain_text(re.compile(r"Upgrade: version \S+ serves, the old one has left"), timeout=40_000)
    made.follow(made.get("/api/v1/upgrade")["pid"])
    expect(operator.page.get_by_text("live", exact=True)).to_be_visible()
    assert axe(operator.page) == []
    operator.leave()


def test_ad_06_what_others_wrote_is_text(operator: Operator, nginx_a) -> None:
    """AD-06: markup in a reason or in a request shows as it is and does nothing, in the page and in the stories of requests."""
    markup = '<img src=x onerror="document.title=`taken`"><script>document.title=`taken`</script>'
    operator.proxy.change("web", nginx_a.address, weight=4, reason=markup)
    operator.proxy.change("web", nginx_a.address, weight=None)
    assert operator.proxy.fetch(headers={"Host": "<img src=x onerror=alert(1)>"})[0] == 400
    operator.enter()
    expect(operator.page.locator(".changes")).to_contain_text(markup)
    operator.page.get_by_text("What happened to this request?").click()
    operator.page.locator(".latest button").first.click()
    operator.page.locator(".story").first.wait_for()
    assert operator.page.locator("#app img, #app script").count() == 0
    assert operator.page.title() == "revproxy"
    assert operator.faults == []


def test_a_viewer_is_told_what_the_role_forbids(operator: Operator, nginx_a) -> None:
    """The role "view" sees everything; what it may not do is said in plain words."""
    operator.enter(VIEWER)
    operator.state(nginx_a.address, "Drain").click()
    operator.page.keyboard.press("Enter")
    expect(operator.proposal.get_by_role("alert")).to_contain_text("Your token may look, but not do this")


@pytest.mark.parametrize(("size", "scheme"), [(DESK, "light"), (DESK, "dark"), (PHONE, "light"), (PHONE, "dark")])
def test_usable_for_everybody(browser, proxy_under_page, nginx_a, size, scheme) -> None:
    """axe finds nothing serious, with and without a change under way; nothing is cut off on a phone."""
    operator = Operator(browser, proxy_under_page, size, scheme)
    operator.proxy.change("web", nginx_a.address, state="drain", weight=2)
    try:
        problems = axe(operator.page)
        operator.enter()
        problems += axe(operator.page)
        operator.state(nginx_a.address, "Maint").click()
        problems += axe(operator.page)
        assert problems == []
        assert operator.page.evaluate("document.documentElement.scrollWidth") <= size[0]
        operator.page.set_viewport_size({"width": 260, "height": 700})
        ports = "[...document.querySelectorAll('.server .address > .port')]"
        assert operator.page.evaluate(ports + ".map((port) => port.getClientRects().length)") == [1, 1, 1], "none is broken"
    finally:
        operator.proxy.change("web", nginx_a.address, state=None, weight=None)
        operator.leave()


def axe(page: Page) -> list[str]:
    """Serious and critical faults, as lines to read."""
    page.evaluate(AXE)
    found = page.evaluate("() => axe.run(document, { resultTypes: ['violations'] })")
    return [
        f"{fault['impact']} {fault['id']}: {fault['help']}: {', '.join(node['html'][:120] for node in fault['nodes'][:3])}"
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
    ]


def test_old_figures_are_called_old(browser, proxy, nginx_a) -> None:
    """When the proxy is gone the page says since when, and does not call anything fine; it is live again by itself."""
    made = proxy(f'[pools.web]\nservers = ["{nginx_a.address}"]\nhealth = "GET /health"\n[sites."*"]\n"/" = "web"\n')
    operator = Operator(browser, made)
    try:
        operator.enter()
        expect(operator.page.get_by_text("The server is fine")).to_be_visible()
        made.stop()
        expect(operator.page.get_by_text("No answer from the proxy since")).to_be_visible()
        made.start()
        expect(operator.page.get_by_text("The server is fine")).to_be_visible(timeout=15_000)
        expect(operator.page.get_by_role("alert")).to_have_count(0)
    finally:
        operator.leave()
