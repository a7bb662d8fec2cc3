"""The members of a cluster against a real server: who is there, mail, and every way in which one is lost."""

from tests.support.fleet import until
from tests.support.members import Fellow
from tests.support.nats import NatsServer


async def test_members_find_each_other_at_once() -> None:
    async with NatsServer() as server, Fellow(server.url, "a") as a, Fellow(server.url, "b") as b:
        await a.knows("b")
        await b.knows("a")
        async with Fellow(server.url, "c") as c:
            await c.knows("a", "b")
            await a.knows("b", "c")
        await a.knows("b")
        assert a.told == ["+b", "+c", "-c leaving"]
        a.hear(b"x")
        b.hear(b"y")
        a.members.tell(a.member("b"), b"y", b"hello", b"7", reply=a.members.reply_subject(b"x", b"7"))
        await until(lambda: bool(b.mail), "no mail")
        assert b.mail == [("a", b"7", b"", b"hello")]
        assert b.members.is_fresh(a.member("b").beat)
