//! The etcd arbiter with members that are silent, strange or hostile. The tests with a real etcd
//! are in `tests/`.

use ft::claim::{Claim, ClaimKind, Verdict};
use hypervisor::arbiter;
use hypervisor::arbiter::{Arbiter, ArbiterError, EtcdArbiter};
use logchannel::entry::Generation;
use logchannel::session::{NodeId, VmId};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::Duration;

/// Long enough for a busy host; no test waits until it has passed.
const TIMEOUT: Duration = Duration::from_secs(30);

/// etcd's answer to a claim that was won.
const WON: &str = r#"{"header":{"cluster_id":"1","revision":"2"},"succeeded":true,"responses":[{"response_put":{}}]}"#;

/// The keys of VM alpha's generations 0 and 1, and a foreign key after them, in answers' encoding.
const KEY_0: &str = "L2Z0LWFyYml0ZXIvYWxwaGEvMDAwMDAwMDAwMDAwMDAwMDAwMDA=";
const KEY_1: &str = "L2Z0LWFyYml0ZXIvYWxwaGEvMDAwMDAwMDAwMDAwMDAwMDAwMDE=";
const KEY_7: &str = "L2Z0LWFyYml0ZXIvYWxwaGEvNw==";

fn vm() -> VmId {
    VmId::new("alpha").unwrap()
}

fn claim(node: u128) -> Claim {
    Claim { node: NodeId(node), kind: ClaimKind::Owner, address: None }
}

/// A member that gives its connections `answers`, one after the other, whatever the request is.
fn member(answers: Vec<Vec<u8>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            // A request ends with its JSON. Unread bytes would make the close a reset.
            let mut request = Vec::new();
            while !request.ends_with(b"}") {
                let mut bytes = [0; 4096];
                match stream.read(&mut bytes) {
                    Ok(count @ 1..) => request.extend_from_slice(&bytes[..count]),
                    Ok(0) | Err(_) => break,
                }
            }
            // A client that has read enough may be gone.
            let _ = stream.write_all(&answer);
        }
    });
    address
}

fn http(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()).into_bytes()
}

fn ask(answer: Vec<u8>) -> Result<Verdict, ArbiterError> {
    let member = member(vec![answer]);
    EtcdArbiter::new([member.as_str()], TIMEOUT).test_and_set(&vm(), Generation(0), &claim(1), None)
}

/// The answer to a claim that was lost, with these keys and values.
fn lost(kvs: &[(&str, &str)]) -> Vec<u8> {
    let kvs: Vec<_> = kvs.iter().map(|(key, value)| serde_json::json!({"key": key, "value": value})).collect();
    let answer = serde_json::json!({
        "header": {"cluster_id": "1"}, "responses": [{"response_range": {"kvs": kvs, "count": "1"}}]
    });
    http("200 OK", &answer.to_string())
}

#[test]
fn what_is_no_etcd_says_nothing_of_a_claim() {
    assert_eq!(ask(http("200 OK", WON)).unwrap(), Verdict::Won, "and this is one");
    let ok = |body: &str| http("200 OK", body);
    let endless_header = [b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'x'; 1 << 20]].concat();
    let strange = [
        http("404 Not Found", "404 page not found"),
        http("400 Bad Request", "Client sent an HTTP request to an HTTPS server."),
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n".to_vec(),
        http("501 Not Implemented", WON),
        b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n".to_vec(),
        endless_header,
        ok(&format!("{}{WON}", " ".repeat(20_000))),
        ok(""),
        ok("null"),
        ok("{}"),
        ok("[]"),
        ok("<html></html>"),
        ok(&"[".repeat(10_000)),
        ok(r#"{"succeeded":true,"responses":[{"response_put":{}}]}"#),
        ok(r#"{"header":{"cluster_id":"1"},"succeeded":true}"#),
        ok(r#"{"header":{"cluster_id":"1"},"succeeded":true,"responses":[]}"#),
        ok(r#"{"header":{"cluster_id":"1"},"responses":[{"response_put":{}}]}"#),
        ok(r#"{"header":{"cluster_id":"1"},"succeeded":true,"responses":[{"response_range":{}}]}"#),
        ok(r#"{"header":{"cluster_id":"1"},"succeeded":1,"responses":[{"response_put":{}}]}"#),
        lost(&[]),
        lost(&[(KEY_1, "e30=")]),
        lost(&[(KEY_0, "e30="), (KEY_1, "e30=")]),
    ];
    for answer in strange {
        let text = String::from_utf8_lossy(&answer[..answer.len().min(200)]).into_owned();
        let error = ask(answer).expect_err(&text);
        assert!(
            matches!(&error, ArbiterError::Protocol { address, .. } if address.contains("127.0.0.1:")),
            "{text}: {error}"
        );
        assert!(!error.to_string().contains(['\n', '\r']) && error.to_string().len() < 1000, "{text}: {error}");
    }
}

#[test]
fn an_answer_cut_anywhere_is_none() {
    let whole = http("200 OK", WON);
    for length in (0..whole.len()).step_by(7) {
        let error = ask(whole[..length].to_vec()).unwrap_err();
        assert!(error.is_unreachable(), "{length} bytes: {error}");
    }
}

#[test]
fn what_etcd_says_is_passed_on() {
    let failure = |message: &str, code| format!(r#"{{"error":"{message}","message":"{message}","code":{code}}}"#);
    let error = ask(http("503 Service Unavailable", &failure("etcdserver: no leader", 14))).unwrap_err();
    assert!(error.is_unreachable() && error.to_string().contains("no leader"), "{error}");
    let error = ask(http("403 Forbidden", &failure("etcdserver: permission denied", 7))).unwrap_err();
    assert!(matches!(error, ArbiterError::Failed { .. }), "{error}");
    assert!(
        error.to_string().contains("etcd://127.0.0.1:") && error.to_string().contains("permission denied"),
        "{error}"
    );
}

/// Answers of proxies whose etcd is down or too slow: not etcd's JSON, and of any length.
fn proxy_answers() -> Vec<Vec<u8>> {
    let statuses = [
        "408 Request Timeout",
        "429 Too Many Requests",
        "500 Internal Server Error",
        "502 Bad Gateway",
        "503 Service Unavailable",
        "504 Gateway Timeout",
        "522 Connection Timed Out",
    ];
    let page = "<html><body><h1>nobody is there</h1></body></html>";
    // The last is from a proxy that takes itself for etcd's gateway: its error isn't about the
    // claim.
    let bodies = ["", page, &page.repeat(1000), r#"{"code":5,"message":"no such backend"}"#];
    statuses.iter().flat_map(|status| bodies.map(|body| http(status, body))).collect()
}

#[test]
fn a_proxy_that_answers_for_etcd_says_nothing_of_a_claim_and_is_asked_again() {
    for answer in proxy_answers() {
        let text = String::from_utf8_lossy(&answer[..answer.len().min(60)]).into_owned();
        let error = ask(answer).expect_err(&text);
        assert!(error.is_unreachable(), "{text}: {error}");
        assert!(!error.to_string().contains(['\n', '\r']) && error.to_string().len() < 1000, "{text}: {error}");
    }
}

#[test]
fn an_etcd_that_has_answered_is_only_away_when_something_else_answers_in_its_place() {
    let page = "<html><body>We'll be back soon</body></html>";
    let strange = vec![
        http("200 OK", page),
        http("200 OK", ""),
        http("200 OK", "{}"),
        http("404 Not Found", "no such service"),
        http("403 Forbidden", page),
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            .to_vec(),
        http("200 OK", &"x".repeat(20_000)),
        b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n".to_vec(),
    ];
    let count = strange.len();
    let answers = [vec![http("200 OK", WON)], strange, vec![http("200 OK", WON)]].concat();
    let member = member(answers);
    let arbiter = EtcdArbiter::new([member.as_str()], TIMEOUT);
    let ask_next = || arbiter.test_and_set(&vm(), Generation(0), &claim(1), None);
    assert_eq!(ask_next().unwrap(), Verdict::Won);
    for number in 0..count {
        let error = ask_next().unwrap_err();
        assert!(error.is_unreachable(), "answer {number}: {error}");
    }
    assert_eq!(ask_next().unwrap(), Verdict::Won);
}

#[test]
fn an_unreadable_claim_is_neither_passed_over_nor_asked_for_again() {
    // Not base64; empty; `{}`; a newer version.
    for value in ["*", "", "e30=", "eyJ2ZXJzaW9uIjozfQ=="] {
        let error = ask(lost(&[(KEY_0, value)])).unwrap_err();
        assert!(matches!(error, ArbiterError::BadClaim { .. }), "{value}: {error}");
        assert!(error.to_string().contains("/ft-arbiter/alpha/00000000000000000000"), "{error}");
    }
    let found = format!(r#"{{"header":{{"cluster_id":"1"}},"kvs":[{{"key":"{KEY_7}","value":"e30="}}]}}"#);
    let member = member(vec![http("200 OK", &found)]);
    let error = EtcdArbiter::new([member.as_str()], TIMEOUT).latest(&vm()).unwrap_err();
    assert!(matches!(error, ArbiterError::BadClaim { .. }), "{error}");
    assert!(error.to_string().contains("/ft-arbiter/alpha/7"), "{error}");
}

#[test]
fn a_member_of_another_cluster_is_not_believed() {
    let stranger = WON.replace(r#""cluster_id":"1""#, r#""cluster_id":"2""#);
    let member = member(vec![http("200 OK", WON), http("200 OK", &stranger), http("200 OK", WON)]);
    let arbiter = EtcdArbiter::new([member.as_str()], TIMEOUT);
    let ask_next = || arbiter.test_and_set(&vm(), Generation(0), &claim(1), None);
    assert_eq!(ask_next().unwrap(), Verdict::Won);
    let error = ask_next().unwrap_err();
    assert!(matches!(error, ArbiterError::Protocol { .. }), "{error}");
    assert!(error.to_string().contains("cluster"), "{error}");
    assert_eq!(ask_next().unwrap(), Verdict::Won);
}

#[test]
fn a_member_that_does_not_answer_costs_its_share_of_the_time_and_only_once() {
    // The kernel accepts connections to it, but no process reads them.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_address = silent.local_addr().unwrap().to_string();
    let good = member(vec![http("200 OK", WON), http("200 OK", WON)]);
    let strange = member(vec![http("200 OK", "{}")]);
    let arbiter = EtcdArbiter::new([silent_address.as_str(), strange.as_str(), good.as_str()], Duration::from_secs(2));
    assert_eq!(arbiter.test_and_set(&vm(), Generation(0), &claim(1), None).unwrap(), Verdict::Won);
    assert_eq!(arbiter.test_and_set(&vm(), Generation(0), &claim(1), None).unwrap(), Verdict::Won);
    silent.set_nonblocking(true).unwrap();
    assert!(silent.accept().is_ok());
    assert!(silent.accept().is_err(), "the one that answered is asked first");

    // Only the silent member is left: it may answer later, so the arbiter may too.
    let error = arbiter.latest(&vm()).unwrap_err();
    assert!(error.is_unreachable() && error.to_string().contains(&silent_address), "{error}");
}

#[test]
fn specs_are_checked() {
    let open = |spec: &str| arbiter::open(spec, TIMEOUT);
    for good in ["etcd://127.0.0.1:2379", "etcd://a.example:2379,b-1:2379,[::1]:2379"] {
        assert!(open(good).is_ok(), "{good}");
    }
    let bad = [
        "etcd:",
        "etcd:host:2379",
        "etcd://",
        "etcd://host",
        "etcd://host:2379/",
        "etcd://host:0",
        "etcd://:2379",
        "etcd://a:1,,b:1",
        "etcd://a:1, b:1",
        "etcd://u@a:1",
        "etcd://a/b:1",
        "http://host:2379",
    ];
    for bad in bad {
        let error = open(bad).unwrap_err();
        assert!(matches!(error, ArbiterError::BadSpec { .. }), "{bad}: {error}");
        assert!(error.to_string().contains("etcd://HOST:PORT"), "{error}");
    }
    for tls in ["https://host:2379", "etcds://host:2379", "etcd://https://host:2379"] {
        assert!(open(tls).unwrap_err().to_string().contains("plain HTTP only"), "{tls}");
    }
}
