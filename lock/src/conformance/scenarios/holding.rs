//! Who holds a key, and for how long.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::conformance::stage::{LONG, Played, SHORT, Stage, ask, key};
use crate::{Acquire, Hold, Key, Request, RequestId, Shape};

/// One holder at a time, and the next one after the release.
pub async fn a_held_key_is_refused_until_it_is_released(stage: &Stage) -> Played {
    let key = key("held");
    let hold = stage.granted(&ask(&key, Shape::Exclusive, LONG)).await;
    let second = ask(&key, Shape::Exclusive, LONG);
    stage.refused(&second).await;
    let elsewhere = stage.another().await.acquire(&second).await.unwrap();
    assert!(matches!(elsewhere, Acquire::Held { .. }), "{elsewhere:?}");
    stage.release(&hold).await;
    let next = stage.granted(&second).await;
    stage.release(&next).await;
    Ok(())
}

/// An asker whose answer was lost asks again and is not locked out by itself.
pub async fn the_same_owner_gets_the_same_token_again(stage: &Stage) -> Played {
    let request = ask(&key("again"), Shape::Exclusive, LONG);
    let first = stage.granted(&request).await;
    let second = stage.granted(&request).await;
    assert_eq!(first.token, second.token);
    stage.release(&first).await;
    stage.granted(&ask(&request.key, Shape::Exclusive, LONG)).await;
    Ok(())
}

/// Whoever comes later has the higher token, however the one before ended.
pub async fn tokens_grow_with_every_grant(stage: &Stage) -> Played {
    let key = key("tokens");
    let mut last = None;
    for round in 0..9 {
        let request = ask(
            &key,
            Shape::Exclusive,
            if round % 3 == 0 { SHORT / 4 } else { LONG },
        );
        let (hold, _) = stage.eventually(&request).await;
        assert!(last < Some(hold.token), "{last:?} then {:?}", hold.token);
        last = Some(hold.token);
        match round % 3 {
            0 => {}
            1 => stage.release(&hold).await,
            _ => stage.backend().leave(&key, hold.owner, hold.shape).await.unwrap(),
        }
    }
    Ok(())
}

/// Eight tasks on two backends, one counter that is read and written apart.
pub async fn many_contenders_hold_one_at_a_time(stage: &Stage) -> Played {
    const TASKS: u32 = 8;
    const TURNS: u32 = 5;
    let key = key("contended");
    let (inside, turns) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    let mut tasks = JoinSet::new();
    for _ in 0..TASKS {
        let backend = stage.another().await;
        let (key, inside, turns) = (key.clone(), Arc::clone(&inside), Arc::clone(&turns));
        tasks.spawn(async move {
            for _ in 0..TURNS {
                let request = ask(&key, Shape::Exclusive, LONG);
                let token = loop {
                    match backend.acquire(&request).await.unwrap() {
                        Acquire::Granted { token } => break token,
                        Acquire::Held { .. } => sleep(Duration::from_millis(2)).await,
                    }
                };
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two hold {key}");
                let seen = turns.load(Ordering::SeqCst);
                sleep(Duration::from_millis(1)).await;
                turns.store(seen + 1, Ordering::SeqCst);
                inside.fetch_sub(1, Ordering::SeqCst);
                let Request {
                    key, owner, shape, ..
                } = request;
                let hold = Hold {
                    key,
                    owner,
                    shape,
                    token,
                };
                backend.release(&hold, RequestId::new()).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(
        turns.load(Ordering::SeqCst),
        TASKS * TURNS,
        "no turn was overwritten"
    );
    Ok(())
}

/// A holder that died does not hold for ever, and is not passed over early.
pub async fn an_expired_hold_frees_the_key(stage: &Stage) -> Played {
    let key = key("expired");
    let since = Instant::now();
    stage.granted(&ask(&key, Shape::Exclusive, SHORT)).await;
    stage.eventually(&ask(&key, Shape::Exclusive, LONG)).await;
    let took = since.elapsed();
    assert!(
        took >= SHORT - SHORT / 20,
        "free after {took:?}, a ttl of {SHORT:?}"
    );
    Ok(())
}

/// The same owner asking again holds the key for a full ttl from then on.
pub async fn asking_again_gives_a_full_ttl(stage: &Stage) -> Played {
    let request = ask(&key("full"), Shape::Exclusive, SHORT);
    stage.granted(&request).await;
    let longer = Request { ttl: LONG, ..request };
    stage.granted(&longer).await;
    sleep(SHORT + SHORT / 4).await;
    stage.refused(&ask(&longer.key, Shape::Exclusive, LONG)).await;
    Ok(())
}

/// The shortest ttl is one: no underflow, no rounding to "for ever".
pub async fn a_hold_of_one_millisecond_ends(stage: &Stage) -> Played {
    let key = key("shortest");
    stage
        .granted(&ask(&key, Shape::Exclusive, Duration::from_millis(1)))
        .await;
    let (_, took) = stage.eventually(&ask(&key, Shape::Exclusive, LONG)).await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    Ok(())
}

/// Keys are compared byte by byte: length, case, accents, spaces and pattern signs make other locks.
pub async fn long_and_foreign_keys_are_locks_of_their_own(stage: &Stage) -> Played {
    let salt = key("k");
    let fill = Key::MAX_BYTES - salt.as_str().len();
    let mut names = vec![
        format!("{salt}{}", "k".repeat(fill)),
        format!("{salt}{}", "k".repeat(fill - 1)),
        format!("{salt}{}x", "k".repeat(fill - 1)),
        salt.as_str().to_owned(),
        salt.as_str().to_uppercase(),
    ];
    for tail in [
        " ", "é", "e\u{301}", "E", "锁", "鎖", "🔒", "{tag}", "{}", "}{", "%", "_", "*", ":fence", "'", "\"",
        "\\", "a b", "ß", "ss",
    ] {
        names.push(format!("{salt}{tail}"));
    }
    let mut holds = Vec::new();
    for name in names {
        let key = Key::new(name).unwrap();
        holds.push(stage.granted(&ask(&key, Shape::Exclusive, LONG)).await);
    }
    for hold in &holds {
        stage.refused(&ask(&hold.key, Shape::Exclusive, LONG)).await;
        stage.release(hold).await;
        let next = stage.granted(&ask(&hold.key, Shape::Exclusive, LONG)).await;
        stage.release(&next).await;
    }
    Ok(())
}

/// The answer to who is refused says when asking again may help.
pub async fn what_remains_of_a_hold_is_told(stage: &Stage) -> Played {
    let key = key("remains");
    let ttl = Duration::from_secs(10);
    stage.granted(&ask(&key, Shape::Exclusive, ttl)).await;
    let remains = stage.refused(&ask(&key, Shape::Exclusive, LONG)).await;
    assert!(
        remains > Duration::from_secs(3) && remains <= ttl,
        "{remains:?} of {ttl:?}"
    );
    Ok(())
}
