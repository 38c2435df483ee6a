//! Two muxes joined by hand. What random worlds can show is in `tests/model.rs`; here is what needs a plan.

use super::*;

const NOW: Duration = Duration::ZERO;

fn pair(links: u32) -> (Mux, Mux) {
    let mut client = Mux::new(Role::Client, Config::default());
    let mut agent = Mux::new(Role::Agent, Config::default());
    for number in 0..links {
        client.link_up(number, NOW).expect("free");
        agent.link_up(number, NOW).expect("free");
    }
    (client, agent)
}

/// All frames that wait on the link.
fn frames(mux: &mut Mux, link: LinkId, now: Duration) -> Vec<(Header, Bytes)> {
    let mut out = Vec::new();
    mux.poll_transmit(link, &mut out, usize::MAX, usize::MAX, now);
    out.into_iter().map(|frame| (Header::decode(&frame.header).expect("our own"), frame.payload)).collect()
}

fn carry(from: &mut Mux, to: &mut Mux, now: Duration) {
    for link in from.links.ids() {
        for (header, payload) in frames(from, link, now) {
            to.handle_frame(link, header, &payload, now).expect("honest");
        }
    }
}

fn exchange(one: &mut Mux, other: &mut Mux, now: Duration) {
    for _ in 0..4 {
        carry(one, other, now);
        carry(other, one, now);
    }
}

/// A flow open at both ends.
fn flow(client: &mut Mux, agent: &mut Mux) -> FlowId {
    let id = client.open(Bytes::from_static(b"to"), NOW).expect("not closed");
    exchange(client, agent, NOW);
    agent.accept(id);
    exchange(client, agent, NOW);
    assert_eq!((client.phase(id), agent.phase(id)), (Phase::Open, Phase::Open));
    id
}

fn take_all(mux: &mut Mux, id: FlowId, now: Duration) -> usize {
    let mut total = 0;
    while let Some(bytes) = mux.take(id) {
        total += bytes.len();
        mux.delivered(id, bytes.len(), &[], now);
    }
    total
}

/// The bytes of each flow among the frames.
fn kinds(frames: &[(Header, Bytes)]) -> Vec<Kind> {
    frames.iter().map(|(header, _)| header.kind).collect()
}

#[test]
fn a_flow_ends_and_leaves_nothing_once_both_sides_finished() {
    let (mut client, mut agent) = pair(1);
    let id = flow(&mut client, &mut agent);
    client.write(id, Bytes::from_static(b"hello"), NOW);
    client.finish(id);
    agent.finish(id);
    exchange(&mut client, &mut agent, NOW);
    assert_eq!(take_all(&mut agent, id, NOW), 5);
    client.take_dirty();
    for mux in [&mut agent, &mut client] {
        assert!(mux.at_end(id));
        mux.end_taken(id, NOW);
        mux.release(id);
    }
    assert!(client.take_dirty().is_empty(), "the final CREDIT waits for something to go out with");
    let soon = client.poll_timeout().expect("a link lives");
    assert!(soon <= Duration::from_millis(20));
    client.handle_timeout(soon);
    agent.handle_timeout(soon);
    exchange(&mut client, &mut agent, soon);
    assert_eq!((client.flow_count(), agent.flow_count()), (0, 0));
    assert_eq!((client.bytes_kept(), agent.bytes_kept()), ((0, 0), (0, 0)));
    let tick = Duration::from_secs(5);
    client.handle_timeout(tick);
    agent.handle_timeout(tick);
    exchange(&mut client, &mut agent, tick);
    assert_eq!((client.farewells_kept(), agent.farewells_kept()), (0, 0));
}

#[test]
fn credit_is_given_for_a_quarter_of_the_window_or_with_the_next_ping() {
    let (mut client, mut agent) = pair(1);
    let id = flow(&mut client, &mut agent);
    for (write, credited) in [(1000, false), (300 << 10, true)] {
        client.write(id, Bytes::from(vec![0; write]), NOW);
        carry(&mut client, &mut agent, NOW);
        assert_eq!(take_all(&mut agent, id, NOW), write);
        let sent = frames(&mut agent, LinkId(0), NOW);
        assert_eq!(kinds(&sent).contains(&Kind::Credit), credited);
        for (header, payload) in sent {
            client.handle_frame(LinkId(0), header, &payload, NOW).expect("honest");
        }
    }
    assert_eq!(client.bytes_kept().0, 0);
    client.write(id, Bytes::from_static(b"x"), NOW);
    carry(&mut client, &mut agent, NOW);
    assert_eq!(take_all(&mut agent, id, NOW), 1);
    assert!(frames(&mut agent, LinkId(0), NOW).is_empty());
    let tick = agent.poll_timeout().expect("a link lives");
    agent.handle_timeout(tick);
    assert_eq!(kinds(&frames(&mut agent, LinkId(0), tick)), [Kind::Ping, Kind::Credit]);
}

#[test]
fn a_bulk_direction_moves_to_the_bulk_link_and_back_when_quiet() {
    let (mut client, mut agent) = pair(2);
    let (bulk, small) = (flow(&mut client, &mut agent), flow(&mut client, &mut agent));
    for _ in 0..3 {
        client.write(bulk, Bytes::from(vec![0; 64 << 10]), NOW);
        frames(&mut client, LinkId(0), NOW);
    }
    client.write(small, Bytes::from_static(b"x"), NOW);
    assert_eq!((client.flows[&bulk].link, client.flows[&small].link), (Some(LinkId(1)), Some(LinkId(0))));
    frames(&mut client, LinkId(1), NOW);
    let later = Duration::from_secs(1);
    client.write(bulk, Bytes::from_static(b"x"), later);
    assert_eq!(client.flows[&bulk].link, Some(LinkId(0)));
}

#[test]
fn bulk_flows_spread_over_the_bulk_links() {
    let (mut client, mut agent) = pair(3);
    let flows = [flow(&mut client, &mut agent), flow(&mut client, &mut agent)];
    for id in flows {
        client.write(id, Bytes::from(vec![0; 256 << 10]), NOW);
    }
    let mut links = flows.map(|id| client.flows[&id].link.map(LinkId::index));
    links.sort();
    assert_eq!(links, [Some(1), Some(2)]);
}

#[test]
fn flows_on_a_link_take_turns() {
    let (mut client, mut agent) = pair(1);
    let flows = [flow(&mut client, &mut agent), flow(&mut client, &mut agent)];
    client.write(flows[0], Bytes::from(vec![0; 256 << 10]), NOW);
    client.write(flows[1], Bytes::from_static(b"small"), NOW);
    let order: Vec<FlowId> = frames(&mut client, LinkId(0), NOW).iter().map(|(header, _)| header.flow).collect();
    assert_eq!(order[..2], flows);
}

#[test]
fn the_window_grows_with_rate_and_round_trip() {
    let (mut client, mut agent) = pair(1);
    let id = flow(&mut client, &mut agent);
    agent.links.get_mut(LinkId(0)).expect("lives").round_trip = Some(Duration::from_millis(20));
    let mut now = NOW;
    for _ in 0..60 {
        now += Duration::from_millis(5);
        let room = client.room(id);
        client.write(id, Bytes::from(vec![0; room]), now);
        exchange(&mut client, &mut agent, now);
        take_all(&mut agent, id, now);
        exchange(&mut client, &mut agent, now);
    }
    assert!(agent.flows[&id].receive.window() > 1 << 20);
    assert!(agent.flows[&id].receive.window() <= 16 << 20);
    client.reset(id, Reset::Aborted);
    exchange(&mut client, &mut agent, now);
    agent.release(id);
    assert_eq!(agent.grown, 0);
}

#[test]
fn a_silent_link_is_noticed_once() {
    let (mut client, _) = pair(1);
    let mut seen = 0;
    for second in 0..40 {
        client.handle_timeout(Duration::from_secs(second));
        while let Some(event) = client.poll_event() {
            assert_eq!(event, Event::Silent(LinkId(0)));
            assert_eq!(second, 15);
            seen += 1;
        }
    }
    assert_eq!(seen, 1);
}

#[test]
fn retained_bytes_are_sent_again_from_where_the_peer_is() {
    let (mut client, mut agent) = pair(1);
    let id = flow(&mut client, &mut agent);
    client.write(id, Bytes::from_static(b"arrives"), NOW);
    carry(&mut client, &mut agent, NOW);
    client.write(id, Bytes::from_static(b" is lost"), NOW);
    frames(&mut client, LinkId(0), NOW);
    for mux in [&mut client, &mut agent] {
        mux.link_lost(LinkId(0));
        mux.link_up(7, NOW).expect("free");
    }
    carry(&mut agent, &mut client, NOW);
    carry(&mut client, &mut agent, NOW);
    let sent = frames(&mut client, LinkId(0), NOW);
    assert!(sent.is_empty(), "all went out at once: {sent:?}");
    let bytes = agent.take(id).expect("in order");
    assert_eq!(bytes, "arrives is lost");
}

#[test]
fn what_the_peer_must_not_do_is_an_error_and_no_panic() {
    let (mut client, mut agent) = pair(1);
    let id = flow(&mut client, &mut agent);
    let mut lie = |flow: u32, kind, offset, payload: &[u8]| {
        let header = Header::new(FlowId(flow), kind, payload.len() as u32, offset);
        agent.handle_frame(LinkId(0), header, payload, NOW)
    };
    let one = 1_u64.to_be_bytes();
    let far = u64::MAX.to_be_bytes();
    assert_eq!(lie(9, Kind::Data, 0, b"x"), Err(ProtocolError::NeverOpened));
    assert_eq!(lie(2, Kind::Open, 0, b""), Err(ProtocolError::WrongSide));
    assert_eq!(lie(0, Kind::Open, 0, b""), Err(ProtocolError::WrongSide));
    assert_eq!(lie(id.0, Kind::Opened, 0, b""), Err(ProtocolError::WrongSide));
    assert_eq!(lie(id.0, Kind::Data, 1 << 20, b"x"), Err(ProtocolError::Overrun));
    assert_eq!(lie(id.0, Kind::Data, u64::MAX, b"x"), Err(ProtocolError::Overrun));
    assert_eq!(lie(id.0, Kind::Fin, u64::MAX, b""), Err(ProtocolError::PastTheEnd));
    assert_eq!(lie(id.0, Kind::Fin, 0, b"x"), Err(ProtocolError::BadPayload));
    assert_eq!(lie(id.0, Kind::Credit, 1, &one), Err(ProtocolError::BadOffset));
    assert_eq!(lie(id.0, Kind::Credit, 0, b"short"), Err(ProtocolError::BadPayload));
    assert_eq!(lie(id.0, Kind::Resume, u64::MAX, &[one, far].concat()), Err(ProtocolError::BadOffset));
    assert_eq!(lie(id.0, Kind::Resume, 0, &[one, far].concat()), Err(ProtocolError::BadPayload));
    assert_eq!(lie(0, Kind::Hello, 0, b""), Err(ProtocolError::Misplaced));
    assert_eq!(lie(77, Kind::Ignored, 5, b"later"), Ok(()));
    assert_eq!(lie(0, Kind::Pong, 5, b""), Ok(()), "never asked, and no harm");
}

#[test]
fn a_peer_that_asks_without_reading_the_answers_is_cut_off() {
    let (_, mut agent) = pair(1);
    let payload = [[0; 8], [0; 8]].concat();
    let ask: Vec<u8> = payload.into_iter().chain([1]).collect();
    let result = (1..1_000_000).find_map(|number| {
        let header = Header::new(FlowId(number * 2 + 1), Kind::Resume, 17, 0);
        agent.handle_frame(LinkId(0), header, &ask, NOW).err()
    });
    assert_eq!(result, Some(ProtocolError::Flooded));
}

#[test]
fn more_flows_than_allowed_are_refused_each() {
    let mut agent = Mux::new(Role::Agent, Config { max_flows: 2, ..Config::default() });
    let link = agent.link_up(0, NOW).expect("free");
    for id in [1, 3, 5] {
        agent.handle_frame(link, Header::new(FlowId(id), Kind::Open, 0, 0), &[], NOW).expect("honest");
    }
    assert_eq!(agent.flow_count(), 2);
    let sent = frames(&mut agent, link, NOW);
    assert_eq!(
        sent.last().map(|(header, _)| (header.flow, header.kind, header.offset)),
        Some((FlowId(5), Kind::Rst, 7))
    );
    agent.refuse(FlowId(1), Reset::Refused);
    assert_eq!(agent.flow_count(), 1);
}

#[test]
fn bulk_flows_share_out_a_link_that_was_added_and_one_that_went_quiet() {
    let (mut client, mut agent) = pair(2);
    let flows = [0; 4].map(|_| flow(&mut client, &mut agent));
    let write = |client: &mut Mux, id, now| {
        client.write(id, Bytes::from(vec![0; 256 << 10]), now);
        let link = client.flows[&id].link.expect("placed");
        frames(client, link, now);
        link.index()
    };
    assert_eq!(flows.map(|id| write(&mut client, id, NOW)), [1; 4]);
    client.link_up(2, NOW).expect("free");
    let moved = flows.map(|id| write(&mut client, id, NOW));
    assert_eq!(moved.iter().filter(|link| **link == 2).count(), 2, "{moved:?}");
    assert_eq!(flows.map(|id| write(&mut client, id, NOW)), moved, "and they stay");
    // The two on link 1 are done; what they count for is given back.
    let later = Duration::from_secs(5);
    client.handle_timeout(later);
    let busy: Vec<_> = (0..4).filter(|flow| moved[*flow] == 2).map(|flow| flows[flow]).collect();
    let mut links = [write(&mut client, busy[0], later), write(&mut client, busy[1], later)];
    links.sort_unstable();
    assert_eq!(links, [1, 2]);
}

#[test]
fn a_receiver_wants_links_for_what_comes() {
    let (mut client, mut agent) = pair(2);
    let flows = [flow(&mut client, &mut agent), flow(&mut client, &mut agent)];
    let mut now = NOW;
    for tick in [5, 10] {
        let sent = Duration::from_secs(tick);
        client.handle_timeout(sent);
        carry(&mut client, &mut agent, sent);
        // The last two PINGs took 20 ms.
        now = sent + Duration::from_millis(20);
        carry(&mut agent, &mut client, now);
    }
    for id in flows {
        agent.write(id, Bytes::from(vec![0; 256 << 10]), now);
    }
    carry(&mut agent, &mut client, now);
    assert_eq!(client.wanted_links(), 3);
    assert!(std::iter::from_fn(|| client.poll_event()).any(|event| event == Event::Wanted(3)));
}

#[test]
fn a_closed_session_forgets_flows_that_only_waited_for_their_last_acknowledgement() {
    let (mut client, mut agent) = pair(1);
    let id = flow(&mut client, &mut agent);
    client.finish(id);
    agent.finish(id);
    exchange(&mut client, &mut agent, NOW);
    client.end_taken(id, NOW);
    client.release(id);
    assert_eq!(client.flow_count(), 1, "the agent has not taken the end");
    client.close(Reset::Aborted);
    assert_eq!(client.flow_count(), 0);
}
