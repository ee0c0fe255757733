-- The sample messages, with made-up customers: what docker-compose.yml fills its database with, after workflows/data/schema.sql.
CREATE TEMPORARY TABLE message (id integer, kind text, comment text);
COPY message FROM '/samples/customer_feedback.csv' WITH (FORMAT csv, HEADER);
INSERT INTO customer_feedback
SELECT id, kind, comment, customer, 'Customer No. ' || customer, 'customer' || customer || '@example.org',
       '+66-00-000-' || customer, customer || ' Sample Road', 'Bangkok', date '1960-01-01' + customer * 10,
       customer, 'none', timestamptz '2024-01-01 00:00Z' + id * interval '37 minutes', 'web', NULL
FROM (SELECT *, 1001 + id % 499 AS customer FROM message) AS numbered;
