//! Readers, writers and permits.

use std::time::Duration;

use tokio::time::Instant;

use crate::conformance::Need;
use crate::conformance::stage::{LONG, Played, SHORT, Stage, ask, key, line_up};
use crate::{Renew, RequestId, Shape};

/// Readers hold the key together; a writer holds it alone.
pub async fn readers_share_and_a_writer_excludes(stage: &Stage) -> Played {
    stage.need(Need::ReadWrite)?;
    let key = key("shared");
    let (read, write) = (|| ask(&key, Shape::Read, LONG), || ask(&key, Shape::Write, LONG));
    let first = stage.granted(&read()).await;
    let second = stage.granted(&read()).await;
    assert!(second.token > first.token);
    stage.refused(&write()).await;
    stage.release(&first).await;
    stage.refused(&write()).await;
    stage.release(&second).await;
    let writer = stage.granted(&write()).await;
    assert!(writer.token > second.token);
    stage.refused(&write()).await;
    stage.refused(&read()).await;
    stage.release(&writer).await;
    stage.granted(&read()).await;
    Ok(())
}

/// New readers queue behind a writer that waits, so that readers who come and go cannot starve it.
pub async fn a_waiting_writer_is_not_overtaken_by_readers(stage: &Stage) -> Played {
    stage.need(Need::ReadWrite)?;
    stage.need(Need::Fair)?;
    let key = key("starve");
    let reader = stage.granted(&ask(&key, Shape::Read, LONG)).await;
    let writer = line_up(&key, Shape::Write, LONG);
    stage.refused(&writer).await;
    let (with, without) = (line_up(&key, Shape::Read, LONG), ask(&key, Shape::Read, LONG));
    stage.refused(&with).await;
    stage.refused(&without).await;
    stage.release(&reader).await;
    stage.refused(&with).await;
    let hold = stage.granted(&writer).await;
    stage.refused(&with).await;
    stage.release(&hold).await;
    stage.granted(&with).await;
    stage.granted(&without).await;
    Ok(())
}

/// A reader that died is not waited for longer than its ttl, while another one's hold counts.
pub async fn an_expired_reader_lets_the_writer_in(stage: &Stage) -> Played {
    stage.need(Need::ReadWrite)?;
    let key = key("reader");
    let since = Instant::now();
    stage.granted(&ask(&key, Shape::Read, SHORT)).await;
    let alive = stage.granted(&ask(&key, Shape::Read, LONG)).await;
    let late = stage
        .granted(&ask(&key, Shape::Read, Duration::from_millis(1)))
        .await;
    stage.release(&alive).await;
    stage.eventually(&ask(&key, Shape::Write, LONG)).await;
    let took = since.elapsed();
    assert!(took >= SHORT - SHORT / 20, "{took:?}");
    let renewed = stage.backend().renew(&[(late, LONG)]).await.remove(0).unwrap();
    assert_ne!(renewed, Renew::Renewed);
    Ok(())
}

/// As many holders as there are permits.
pub async fn permits_are_limited(stage: &Stage) -> Played {
    stage.need(Need::Permits)?;
    let key = key("permits");
    let permit = || ask(&key, Shape::Permit { limit: 3 }, LONG);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(stage.granted(&permit()).await);
    }
    assert!(held.is_sorted_by(|a, b| a.token < b.token), "{held:?}");
    stage.refused(&permit()).await;
    for hold in held {
        stage.release(&hold).await;
        stage.granted(&permit()).await;
        stage.refused(&permit()).await;
    }
    Ok(())
}

/// A permit whose holder died comes back.
pub async fn an_expired_permit_is_free_again(stage: &Stage) -> Played {
    stage.need(Need::Permits)?;
    let key = key("expiring");
    let shape = Shape::Permit { limit: 2 };
    let since = Instant::now();
    stage.granted(&ask(&key, shape, SHORT)).await;
    stage.granted(&ask(&key, shape, LONG)).await;
    stage.eventually(&ask(&key, shape, LONG)).await;
    let took = since.elapsed();
    assert!(took >= SHORT - SHORT / 20, "{took:?}");
    stage.refused(&ask(&key, shape, LONG)).await;
    Ok(())
}

/// Permits of one key are renewed and end one by one.
pub async fn a_permit_is_renewed_and_released_alone(stage: &Stage) -> Played {
    stage.need(Need::Permits)?;
    let key = key("alone");
    let shape = Shape::Permit { limit: 2 };
    let first = stage.granted(&ask(&key, shape, LONG)).await;
    let second = stage.granted(&ask(&key, shape, LONG)).await;
    let request = RequestId::new();
    stage.backend().release(&first, request).await.unwrap();
    let answers = stage
        .backend()
        .renew(&[(first.clone(), LONG), (second.clone(), LONG)])
        .await;
    let answers: Vec<Renew> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers, [Renew::Expired, Renew::Renewed]);
    let third = ask(&key, shape, LONG);
    stage.granted(&third).await;
    stage.backend().release(&first, request).await.unwrap();
    stage.refused(&ask(&key, shape, LONG)).await;
    stage.backend().leave(&key, third.owner, shape).await.unwrap();
    stage.granted(&ask(&key, shape, LONG)).await;
    Ok(())
}

/// One name may be an exclusive lock, a read-write lock and a semaphore at once.
pub async fn kinds_of_one_key_do_not_meet(stage: &Stage) -> Played {
    let key = key("kinds");
    stage.granted(&ask(&key, Shape::Exclusive, LONG)).await;
    stage.need(Need::ReadWrite)?;
    stage.granted(&ask(&key, Shape::Write, LONG)).await;
    stage.need(Need::Permits)?;
    stage.granted(&ask(&key, Shape::Permit { limit: 1 }, LONG)).await;
    stage.refused(&ask(&key, Shape::Exclusive, LONG)).await;
    stage.refused(&ask(&key, Shape::Read, LONG)).await;
    stage.refused(&ask(&key, Shape::Permit { limit: 1 }, LONG)).await;
    Ok(())
}
