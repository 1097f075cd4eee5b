-- Makes the publishes of a topic serial until the commit, so that a cursor never steps over a row that
-- becomes visible later. In one order, so that two batches cannot deadlock. $1 topics
SELECT pg_advisory_xact_lock(812, topic)
FROM (SELECT DISTINCT hashtext(t) AS topic FROM unnest($1) AS t ORDER BY 1) AS topics
