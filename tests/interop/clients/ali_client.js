// Runs with npm's ali-ons. Talks JSON lines.
//   produce NAMESRV GROUP TOPIC            reads {"body", "tags", "keys", "delay", "key"} lines, answers one line for each
//   flood NAMESRV GROUP TOPIC PREFIX       sends numbered bodies with one sharding key until standard input ends
//   consume NAMESRV GROUP TOPIC EXPRESSION [failfirst|failalways]
'use strict';

const readline = require('readline');
const { Consumer, Message, Producer } = require('ali-ons');

const [ mode, nameSrv, group, topic, last, ...options ] = process.argv.slice(2);
const say = fields => process.stdout.write(JSON.stringify(fields) + '\n');
const logger = { info() {}, debug() {}, warn(...a) { console.error(...a); }, error(...a) { console.error(...a); } };
const httpclient = { request() { throw new Error('no http here'); } };
const common = { accessKeyId: 'id', accessKeySecret: 'secret', nameSrv, logger, httpclient };
const pause = ms => new Promise(resolve => setTimeout(resolve, ms));

function messageOf(wish) {
  const message = new Message(topic, wish.tags || '', wish.body);
  if (wish.keys) message.keys = wish.keys.split(' ');
  if (wish.delay) message.delayTimeLevel = wish.delay;
  if (wish.key !== undefined) message.shardingKey = String(wish.key);
  return message;
}

async function started() {
  const producer = new Producer({ ...common, producerGroup: group });
  producer.on('error', error => console.error(error.message));
  await producer.ready();
  return producer;
}

async function produce() {
  const producer = await started();
  say({ ready: true });
  for await (const line of readline.createInterface({ input: process.stdin })) {
    try {
      const result = await producer.send(messageOf(JSON.parse(line)));
      say({ ok: true, status: result.sendStatus === 'SEND_OK' ? 0 : 1, id: result.msgId, offset: Number(result.queueOffset) });
    } catch (error) {
      say({ ok: false, error: error.message });
    }
  }
}

async function flood() {
  const producer = await started();
  let ended = false;
  process.stdin.resume();
  process.stdin.on('end', () => { ended = true; });
  for (let number = 0; !ended; number++) {
    const body = `${last}-${number}`;
    try {
      const result = await producer.send(messageOf({ body, key: 'one' }));
      say({ ok: true, body, status: result.sendStatus === 'SEND_OK' ? 0 : 1, offset: Number(result.queueOffset), at: Date.now() / 1000 });
    } catch (error) {
      say({ ok: false, body, error: error.message.slice(0, 200), at: Date.now() / 1000 });
    }
    await pause(10);
  }
}

async function consume() {
  const consumer = new Consumer({
    ...common,
    consumerGroup: group,
    consumeFromWhere: 'CONSUME_FROM_FIRST_OFFSET',
    maxReconsumeTimes: options.includes('failalways') ? 1 : 16,
  });
  consumer.on('error', error => console.error(error.message));
  consumer.subscribe(topic, last, async message => {
    const failed = options.includes('failalways') || (options.includes('failfirst') && message.reconsumeTimes === 0);
    say({
      body: message.body.toString(), tags: message.tags || '', keys: message.keys || '', queue: message.queueId,
      offset: Number(message.queueOffset), again: message.reconsumeTimes, failed, at: Date.now() / 1000,
    });
    if (failed) throw new Error('again, please');
  });
  await consumer.ready();
  say({ ready: true });
  process.stdin.resume();
  await new Promise(resolve => process.stdin.on('end', resolve));
}

({ produce, flood, consume })[mode]().then(() => process.exit(0), error => {
  console.error(error);
  process.exit(1);
});
