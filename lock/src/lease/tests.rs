use proptest::prelude::*;

use super::*;

const S: Duration = Duration::from_secs(1);

fn terms() -> Terms {
    Terms {
        ttl: S * 30,
        renew_every: S * 10,
        margin: S * 10,
        max_hold: Some(S * 600),
        lost_grace: Duration::ZERO,
    }
}

fn lease(at: Instant) -> Lease {
    Lease::granted(terms(), at, at).unwrap()
}

#[test]
fn the_deadline_counts_from_the_instant_of_asking() {
    let asked = Instant::now();
    let lease = Lease::granted(terms(), asked, asked + S * 5).unwrap();
    assert_eq!(lease.deadline(), asked + S * 20);
    assert_eq!(lease.renew_at(), Some(asked + S * 10));
}

#[test]
fn a_grant_after_its_own_deadline_is_none() {
    let asked = Instant::now();
    assert!(Lease::granted(terms(), asked, asked + S * 20).is_none());
    assert!(Lease::granted(terms(), asked, asked + S * 20 - Duration::from_nanos(1)).is_some());
}

#[test]
fn one_failed_renewal_is_suspect_and_the_next_good_one_is_held() {
    let start = Instant::now();
    let mut lease = lease(start);
    lease.failed(start + S * 11);
    assert_eq!(lease.state(), State::Suspect);
    assert_eq!(lease.deadline(), start + S * 20, "a failure moves no deadline");
    assert_eq!(lease.renew_at(), Some(start + S * 12));
    lease.renewed(start + S * 13, start + S * 14);
    assert_eq!(lease.state(), State::Held);
    assert_eq!(lease.deadline(), start + S * 33);
}

#[test]
fn lost_is_terminal() {
    let start = Instant::now();
    for reason in [LossReason::Expired, LossReason::Stolen] {
        let mut lease = lease(start);
        lease.gone(reason, start + S);
        lease.renewed(start + S, start + S * 2);
        lease.failed(start + S * 2);
        assert!(!lease.release(start + S * 3));
        lease.observe(start + S * 100);
        assert_eq!(lease.state(), State::Lost(reason));
        assert_eq!(lease.renew_at(), None);
    }
}

#[test]
fn a_renewal_answered_after_the_deadline_revives_nothing() {
    let start = Instant::now();
    let mut lease = lease(start);
    lease.renewed(start + S * 19, start + S * 20);
    assert_eq!(lease.state(), State::Lost(LossReason::Deadline));
}

#[test]
fn max_hold_ends_the_renewal_and_is_the_reason() {
    let start = Instant::now();
    let mut lease = Lease::granted(
        Terms {
            max_hold: Some(S * 30),
            ..terms()
        },
        start,
        start,
    )
    .unwrap();
    lease.renewed(start + S * 10, start + S * 10);
    lease.renewed(start + S * 20, start + S * 20);
    assert_eq!(lease.renew_at(), None);
    lease.observe(start + S * 39);
    assert_eq!(lease.state(), State::Held);
    lease.observe(start + S * 40);
    assert_eq!(lease.state(), State::Lost(LossReason::MaxHold));
}

#[test]
fn released_is_terminal() {
    let start = Instant::now();
    let mut lease = lease(start);
    assert!(lease.release(start + S));
    lease.renewed(start + S, start + S);
    lease.gone(LossReason::Stolen, start + S);
    lease.observe(start + S * 100);
    assert_eq!(lease.state(), State::Released);
    assert!(!lease.release(start + S));
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Renewed { waited: u64, took: u64 },
    Failed { waited: u64 },
    Observed { waited: u64 },
}

fn step(ttl: u64) -> impl Strategy<Value = Step> {
    let waited = 0..=ttl;
    prop_oneof![
        (waited.clone(), 0..=ttl).prop_map(|(waited, took)| Step::Renewed { waited, took }),
        waited.clone().prop_map(|waited| Step::Failed { waited }),
        waited.prop_map(|waited| Step::Observed { waited }),
    ]
}

proptest! {
    /// For every ttl from 1 ms to 1 h and every margin below it: no underflow, the deadline lies a margin
    /// before the service may give the lock away, nobody believes past it, and nothing lost comes back.
    #[test]
    fn nobody_believes_past_the_deadline(
        (ttl, margin, grant, steps) in (1u64..=3_600_000).prop_flat_map(|ms| {
            let ttl = ms * 1000;
            (Just(ttl), 0..ttl, 0..=ttl, prop::collection::vec(step(ttl), 0..40))
        })
    ) {
        let us = Duration::from_micros;
        let terms = Terms {
            ttl: us(ttl),
            renew_every: us(ttl - margin) / 2,
            margin: us(margin),
            max_hold: Some(us(ttl * 5)),
            lost_grace: Duration::ZERO,
        };
        let start = Instant::now();
        let mut sent = start;
        let mut now = start + us(grant);
        let Some(mut lease) = Lease::granted(terms, start, now) else {
            prop_assert!(grant >= ttl - margin, "a grant in time was refused");
            return Ok(());
        };
        let mut lost = false;
        for step in steps {
            match step {
                Step::Renewed { waited, took } => {
                    let asked = now + us(waited);
                    now = asked + us(took);
                    lease.renewed(asked, now);
                    if lease.state() == State::Held {
                        sent = asked;
                    }
                }
                Step::Failed { waited } => {
                    now += us(waited);
                    lease.failed(now);
                }
                Step::Observed { waited } => {
                    now += us(waited);
                    lease.observe(now);
                }
            }
            prop_assert!(lease.deadline() + terms.margin <= sent + terms.ttl);
            if lease.state().is_held() {
                prop_assert!(!lost, "what was lost came back");
                prop_assert!(now < lease.deadline(), "believed past the deadline");
            } else {
                lost = true;
                prop_assert_eq!(lease.renew_at(), None);
            }
        }
    }
}
