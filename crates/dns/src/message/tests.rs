use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{RData, Record as Rr, RecordType};

use super::*;

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

fn ask(text: &str, edns: Option<u16>) -> Vec<u8> {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(name(text), RecordType::A));
    if let Some(buffer) = edns {
        let mut opt = Edns::new();
        opt.set_max_payload(buffer);
        message.set_edns(opt);
    }
    message.to_vec().expect("encodes")
}

fn reply(text: &str, id: u16, fill: impl FnOnce(&mut Message)) -> Answer {
    let mut message = Message::response(id, OpCode::Query);
    message.add_query(Question::query(name(text), RecordType::A));
    fill(&mut message);
    Answer::parse(message.to_vec().expect("encodes").into()).expect("well formed")
}

fn a(text: &str, ttl: u32, last: u8) -> Rr {
    Rr::from_rdata(name(text), ttl, RData::A(A::new(10, 0, 0, last)))
}

#[test]
fn an_answer_carries_the_askers_id_and_case_and_the_ttl_that_is_left() {
    let first = Query::parse(&ask("web.shop.", None)).expect("a question");
    let second = Query::parse(&ask("WEB.Shop.", None)).expect("a question");
    assert_eq!(first.key(), second.key());
    let answer = reply("web.shop.", 9, |m| {
        m.add_answer(a("web.shop.", 30, 1)).add_answer(a("web.shop.", 2, 2));
    });
    assert!(answer.answers(&first, 9) && answer.answers(&second, 9));
    assert!(!answer.answers(&first, 8));
    assert_eq!(answer.lifetime(), Some(Duration::from_secs(2)));

    let response = Message::from_vec(&second.respond(&answer, Duration::from_millis(3_900), 512)).expect("reads back");
    assert_eq!(response.metadata.id, 77);
    assert_eq!(response.queries[0].name().to_ascii(), "WEB.Shop.");
    assert_eq!(response.answers.iter().map(|r| r.ttl).collect::<Vec<_>>(), [27, 0]);
    let ips: Vec<_> = answer.addresses().iter().map(|(ip, ttl)| (ip.to_string(), ttl.as_secs())).collect();
    assert_eq!(ips, [("10.0.0.1".to_owned(), 30), ("10.0.0.2".to_owned(), 2)]);
}

#[test]
fn a_negative_answer_lives_as_long_as_its_soa_says() {
    let soa = SOA::new(name("ns."), name("mail."), 1, 2, 3, 4, 5);
    let answer = reply("gone.", 1, |m| {
        m.metadata.response_code = ResponseCode::NXDomain;
        m.add_authority(Rr::from_rdata(name("."), 30, RData::SOA(soa)));
    });
    assert_eq!((answer.rcode(), answer.is_positive()), (NAME_ERROR, false));
    assert_eq!(answer.lifetime(), Some(Duration::from_secs(5)));
    let bare = reply("gone.", 1, |m| m.metadata.response_code = ResponseCode::NXDomain);
    assert_eq!(bare.lifetime(), None);
}

#[test]
fn what_does_not_fit_the_askers_buffer_is_truncated() {
    let answer = reply("many.", 1, |m| {
        m.add_answers((0..60).map(|i| a("many.", 30, i)));
    });
    assert!(answer.len() > 512);
    for (edns, fits) in [(None, false), (Some(600), false), (Some(4096), true), (Some(100), false)] {
        let query = Query::parse(&ask("many.", edns)).expect("a question");
        let response = query.respond(&answer, Duration::ZERO, query.udp_room());
        let message = Message::from_vec(&response).expect("reads back");
        assert_eq!(message.metadata.truncation, !fits);
        assert_eq!(message.answers.len(), if fits { 60 } else { 0 });
        assert_eq!(message.queries.len(), 1);
        assert!(fits || message.edns.is_some() == edns.is_some());
    }
}

#[test]
fn a_question_goes_on_with_our_buffer_and_without_its_options() {
    let mut sent = ask("web.", Some(4096));
    // An option (cookie, 8 bytes) behind the OPT record, whose length is its last field.
    let at = sent.len() - 2;
    sent[at..].copy_from_slice(&12_u16.to_be_bytes());
    sent.extend_from_slice(&[0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
    let query = Query::parse(&sent).expect("a question");
    let message = Message::from_vec(&query.to_upstream(5)).expect("reads back");
    assert_eq!((message.metadata.id, message.metadata.recursion_desired), (5, true));
    let edns = message.edns.expect("kept");
    assert_eq!((edns.max_payload(), edns.options().as_ref().len()), (OWN_BUFFER, 0));
    assert_ne!(query.key(), Query::parse(&ask("web.", None)).expect("a question").key());
}

#[test]
fn malformed_questions_are_told_so_or_ignored() {
    let good = ask("web.", Some(1232));
    let rcode = |message: &[u8]| match Query::parse(message) {
        Err(Rejected::Answer(response)) => {
            Some(Message::from_vec(&response).expect("reads back").metadata.response_code)
        }
        Err(Rejected::Ignore) => None,
        Ok(_) => panic!("served"),
    };
    let changed = |at: usize, byte: u8| {
        let mut message = good.clone();
        message[at] = byte;
        message
    };
    assert_eq!(rcode(&good[..11]), None);
    assert_eq!(rcode(&changed(2, 0x81)), None);
    assert_eq!(rcode(&changed(2, 0x28)), Some(ResponseCode::NotImp));
    assert_eq!(rcode(&changed(5, 2)), Some(ResponseCode::FormErr));
    assert_eq!(rcode(&good[..20]), Some(ResponseCode::FormErr));
    assert_eq!(rcode(&changed(12, 0xc0)), Some(ResponseCode::FormErr));
    // Type AXFR; EDNS version 1, whose code 16 hickory shows as the other meaning of 16.
    assert_eq!(rcode(&changed(18, 252)), Some(ResponseCode::NotImp));
    assert_eq!(rcode(&changed(good.len() - 5, 1)), Some(ResponseCode::BADSIG));
    let mut two = good.clone();
    two[11] = 2;
    two.extend_from_slice(&good[good.len() - 11..]);
    assert_eq!(rcode(&two), Some(ResponseCode::FormErr));
}

#[test]
fn an_answer_to_another_question_is_none() {
    let query = ask("web.", None);
    let response = |text: &str, id| {
        let mut message = Message::response(id, OpCode::Query);
        message.add_query(Question::query(name(text), RecordType::A));
        message.to_vec().expect("encodes")
    };
    assert!(is_response_to(&response("Web.", 77), &query));
    assert!(!is_response_to(&response("web.", 78), &query));
    assert!(!is_response_to(&response("wob.", 77), &query));
    assert!(!is_response_to(&query, &query));
    assert!(is_response_to(&[0, 77, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0], &query));
    assert!(!is_response_to(&[0, 77, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0], &query));
}

#[test]
fn an_answer_whose_names_point_into_its_own_ttls_is_a_failure_not_nonsense() {
    let bytes = include_bytes!("../../../../fuzz/corpus/messages/names-that-point-into-a-ttl");
    let answer = Answer::parse(bytes.as_slice().into()).expect("well formed as it came");
    let asked = [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &answer.bytes[HEADER..answer.question_end]].concat();
    let Ok(query) = Query::parse(&asked) else { panic!("a question") };
    let response = query.respond(&answer, Duration::from_secs(3), 512);
    let again = Answer::parse(response.into()).expect("reads back");
    assert!(again.answers(&query, query.id) && again.rcode() == SERVER_FAILURE);
}
