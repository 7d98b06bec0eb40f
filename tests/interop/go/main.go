// Drives Apache's Go client. Talks JSON lines: `client NAMESRV`, then the wishes of tests/interop/java/Driver.java.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	rocketmq "github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/admin"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
	"github.com/apache/rocketmq-client-go/v2/rlog"
)

const (
	sendLimit  = 30 * time.Second
	floodPause = 5 * time.Millisecond
)

type object map[string]interface{}

type driver struct {
	namesrv   string
	out       *bufio.Writer
	outLock   sync.Mutex
	producers map[string]rocketmq.Producer
	pullers   map[string]rocketmq.PullConsumer
	stops     map[string]func()
}

func main() {
	rlog.SetLogLevel("warn")
	out := bufio.NewWriter(os.Stdout)
	// Libraries that print must not break the lines.
	os.Stdout = os.Stderr
	d := &driver{
		namesrv:   os.Args[1],
		out:       out,
		producers: map[string]rocketmq.Producer{},
		pullers:   map[string]rocketmq.PullConsumer{},
		stops:     map[string]func(){},
	}
	d.say("ready", true)
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(make([]byte, 1<<20), 16<<20)
	for in.Scan() {
		wish := object{}
		if err := json.Unmarshal(in.Bytes(), &wish); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		d.say("reply", d.answer(wish))
	}
	for _, stop := range d.stops {
		stop()
	}
}

func (d *driver) say(what string, value interface{}) {
	line, err := json.Marshal(object{what: value})
	if err != nil {
		line, _ = json.Marshal(object{what: object{"ok": false, "error": err.Error()}})
	}
	d.outLock.Lock()
	defer d.outLock.Unlock()
	d.out.Write(append(line, '\n'))
	d.out.Flush()
}

func (d *driver) answer(wish object) object {
	reply, err := d.serve(wish)
	if reply == nil {
		reply = object{}
	}
	reply["ok"] = err == nil
	if err != nil {
		reply["error"] = err.Error()
		fmt.Fprintln(os.Stderr, wish.text("op"), err)
	}
	return reply
}

func (d *driver) serve(wish object) (object, error) {
	switch wish.text("op") {
	case "producer":
		return nil, d.producer(wish)
	case "send":
		return d.send(wish)
	case "batch":
		return d.batch(wish)
	case "flood":
		d.flood(wish)
		return nil, nil
	case "transaction":
		return d.transaction(wish)
	case "request":
		return d.request(wish)
	case "push":
		return nil, d.push(wish)
	case "lite":
		return nil, d.lite(wish)
	case "poll":
		return d.poll(wish)
	case "topic", "topics", "routed", "delete":
		return d.admin(wish)
	case "stop":
		d.stops[wish.text("id")]()
		delete(d.stops, wish.text("id"))
		return nil, nil
	}
	return nil, fmt.Errorf("no such wish: %v", wish)
}

// ---------------------------------------------------------------------- wishes

func (o object) text(name string) string {
	text, _ := o[name].(string)
	return text
}

func (o object) number(name string) int {
	number, _ := o[name].(float64)
	return int(number)
}

func (o object) flag(name string) bool {
	flag, _ := o[name].(bool)
	return flag
}

func (o object) credentials() primitive.Credentials {
	return primitive.Credentials{AccessKey: o.text("accessKey"), SecretKey: o.text("secretKey")}
}

func (d *driver) resolver() primitive.NsResolver {
	return primitive.NewPassthroughResolver([]string{d.namesrv})
}

// ---------------------------------------------------------------------- producers

// toQueue sends a message whose sharding key is a number to the queue of that number.
type toQueue struct{ otherwise producer.QueueSelector }

func (s toQueue) Select(message *primitive.Message, queues []*primitive.MessageQueue, last string) *primitive.MessageQueue {
	if key := message.GetShardingKey(); key != "" {
		if number, err := strconv.Atoi(key); err == nil {
			for _, queue := range queues {
				if queue.QueueId == number {
					return queue
				}
			}
		}
	}
	return s.otherwise.Select(message, queues, last)
}

func (d *driver) producer(wish object) error {
	id := wish.text("id")
	options := []producer.Option{
		producer.WithNsResolver(d.resolver()),
		producer.WithGroupName(wish.text("group")),
		producer.WithInstanceName(id),
		producer.WithRetry(wish.number("retries")),
		producer.WithQueueSelector(toQueue{producer.NewRoundRobinQueueSelector()}),
	}
	if wish.text("accessKey") != "" {
		options = append(options, producer.WithCredentials(wish.credentials()))
	}
	if namespace := wish.text("namespace"); namespace != "" {
		options = append(options, producer.WithNamespace(namespace))
	}
	if wish.flag("trace") {
		trace := &primitive.TraceConfig{Access: primitive.Local, Resolver: d.resolver(), GroupName: wish.text("group")}
		options = append(options, producer.WithTrace(trace))
	}
	made, err := rocketmq.NewProducer(options...)
	if err != nil {
		return err
	}
	if err := made.Start(); err != nil {
		return err
	}
	d.producers[id] = made
	d.stops[id] = func() { made.Shutdown() }
	return nil
}

func message(wish object, body string) *primitive.Message {
	made := primitive.NewMessage(wish.text("topic"), []byte(body))
	if tags := wish.text("tags"); tags != "" {
		made.WithTag(tags)
	}
	if keys := wish.text("keys"); keys != "" {
		made.WithKeys(strings.Split(keys, " "))
	}
	if level := wish.number("delay"); level > 0 {
		made.WithDelayTimeLevel(level)
	}
	if _, wished := wish["queue"]; wished {
		made.WithShardingKey(strconv.Itoa(wish.number("queue")))
	}
	if properties, _ := wish["properties"].(map[string]interface{}); properties != nil {
		for name, value := range properties {
			made.WithProperty(name, fmt.Sprint(value))
		}
	}
	return made
}

func result(sent *primitive.SendResult, err error) (object, error) {
	if err != nil {
		return nil, err
	}
	status := map[primitive.SendStatus]string{primitive.SendOK: "SEND_OK"}[sent.Status]
	return object{
		"status": status, "msgId": sent.MsgID, "offsetMsgId": sent.OffsetMsgID,
		"queue": sent.MessageQueue.QueueId, "offset": sent.QueueOffset,
	}, nil
}

func (d *driver) send(wish object) (object, error) {
	made := d.producers[wish.text("id")]
	one := message(wish, wish.text("body"))
	ctx, cancel := context.WithTimeout(context.Background(), sendLimit)
	defer cancel()
	switch wish.text("how") {
	case "oneway":
		return nil, made.SendOneWay(ctx, one)
	case "async":
		type outcome struct {
			sent *primitive.SendResult
			err  error
		}
		done := make(chan outcome, 1)
		callback := func(_ context.Context, sent *primitive.SendResult, err error) { done <- outcome{sent, err} }
		if err := made.SendAsync(ctx, callback, one); err != nil {
			return nil, err
		}
		select {
		case got := <-done:
			return result(got.sent, got.err)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return result(made.SendSync(ctx, one))
}

func (d *driver) batch(wish object) (object, error) {
	bodies, _ := wish["bodies"].([]interface{})
	messages := make([]*primitive.Message, 0, len(bodies))
	for _, body := range bodies {
		messages = append(messages, message(wish, body.(string)))
	}
	return result(d.producers[wish.text("id")].SendSync(context.Background(), messages...))
}

// flood sends PREFIX-0, PREFIX-1, … to queue 0 until told to stop, every outcome an event; a failed one is sent again.
func (d *driver) flood(wish object) {
	var ended int32
	done := make(chan struct{})
	wish["queue"] = float64(0)
	go func() {
		defer close(done)
		for number := 0; atomic.LoadInt32(&ended) == 0; number++ {
			body := fmt.Sprintf("%s-%d", wish.text("prefix"), number)
			for sent := false; !sent && atomic.LoadInt32(&ended) == 0; {
				time.Sleep(floodPause)
				ctx, cancel := context.WithTimeout(context.Background(), sendLimit)
				got, err := result(d.producers[wish.text("id")].SendSync(ctx, message(wish, body)))
				cancel()
				sent = err == nil && got["status"] == "SEND_OK"
				outcome := object{"sent": body, "acknowledged": sent, "at": now()}
				if err != nil {
					outcome["error"] = err.Error()
				}
				d.say("event", outcome)
			}
		}
	}()
	d.stops[wish.text("as")] = func() {
		atomic.StoreInt32(&ended, 1)
		<-done
	}
}

type committing struct{}

func (committing) ExecuteLocalTransaction(*primitive.Message) primitive.LocalTransactionState {
	return primitive.CommitMessageState
}

func (committing) CheckLocalTransaction(*primitive.MessageExt) primitive.LocalTransactionState {
	return primitive.CommitMessageState
}

func (d *driver) transaction(wish object) (object, error) {
	made, err := rocketmq.NewTransactionProducer(
		committing{},
		producer.WithNsResolver(d.resolver()),
		producer.WithGroupName(wish.text("group")),
		producer.WithInstanceName(wish.text("id")),
	)
	if err != nil {
		return nil, err
	}
	if err := made.Start(); err != nil {
		return nil, err
	}
	defer made.Shutdown()
	sent, err := made.SendMessageInTransaction(context.Background(), message(wish, wish.text("body")))
	if err != nil {
		return nil, err
	}
	return result(sent.SendResult, nil)
}

func (d *driver) request(wish object) (object, error) {
	limit := time.Duration(wish.number("timeout")) * time.Millisecond
	asked := message(wish, wish.text("body"))
	answer, err := d.producers[wish.text("id")].Request(context.Background(), limit, asked)
	if err != nil {
		return nil, err
	}
	return object{"body": string(answer.Body)}, nil
}

// ---------------------------------------------------------------------- consumers

func seen(message *primitive.MessageExt) object {
	return object{
		"body": string(message.Body), "topic": message.Topic, "tags": message.GetTags(), "keys": message.GetKeys(),
		"queue": message.Queue.QueueId, "offset": message.QueueOffset, "again": message.ReconsumeTimes,
		"msgId": message.MsgId, "sysFlag": message.SysFlag, "properties": message.GetProperties(),
		"at": now(),
	}
}

func now() float64 {
	return float64(time.Now().UnixNano()) / 1e9
}

func selector(wish object) consumer.MessageSelector {
	made := consumer.MessageSelector{Type: consumer.TAG, Expression: "*"}
	if expression := wish.text("expression"); expression != "" {
		made.Expression = expression
	}
	if wish.flag("sql") {
		made.Type = consumer.SQL92
	}
	return made
}

func (d *driver) consumerOptions(wish object) []consumer.Option {
	options := []consumer.Option{
		consumer.WithNsResolver(d.resolver()),
		consumer.WithGroupName(wish.text("group")),
		consumer.WithInstance(wish.text("id")),
		consumer.WithConsumeFromWhere(consumer.ConsumeFromFirstOffset),
		consumer.WithConsumerOrder(wish.flag("orderly")),
	}
	if wish.text("accessKey") != "" {
		options = append(options, consumer.WithCredentials(wish.credentials()))
	}
	if namespace := wish.text("namespace"); namespace != "" {
		options = append(options, consumer.WithNamespace(namespace))
	}
	if _, wished := wish["maxReconsumeTimes"]; wished {
		options = append(options, consumer.WithMaxReconsumeTimes(int32(wish.number("maxReconsumeTimes"))))
	}
	if wish.flag("broadcast") {
		options = append(options, consumer.WithConsumerModel(consumer.BroadCasting))
	}
	if wish.flag("trace") {
		trace := &primitive.TraceConfig{Access: primitive.Local, Resolver: d.resolver(), GroupName: wish.text("group")}
		options = append(options, consumer.WithTrace(trace))
	}
	return options
}

func (d *driver) push(wish object) error {
	made, err := rocketmq.NewPushConsumer(d.consumerOptions(wish)...)
	if err != nil {
		return err
	}
	callback := func(ctx context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		if level := wish.number("retryLevel"); level > 0 {
			if concurrently, ok := primitive.GetConcurrentlyCtx(ctx); ok {
				concurrently.DelayLevelWhenNextConsume = level
			}
		}
		return d.consumed(wish, messages), nil
	}
	if err := made.Subscribe(wish.text("topic"), selector(wish), callback); err != nil {
		return err
	}
	if err := made.Start(); err != nil {
		return err
	}
	d.stops[wish.text("id")] = func() { made.Shutdown() }
	return nil
}

func (d *driver) consumed(wish object, messages []*primitive.MessageExt) consumer.ConsumeResult {
	outcome := consumer.ConsumeSuccess
	for _, message := range messages {
		fail := wish.text("fail")
		failed := fail == "always" || fail == "first" && message.ReconsumeTimes == 0
		event := seen(message)
		event["consumer"] = wish.text("id")
		event["failed"] = failed
		d.say("event", event)
		if failed {
			outcome = consumer.ConsumeRetryLater
		}
		if with := wish.text("replyWith"); with != "" {
			d.reply(with, message)
		}
	}
	return outcome
}

func (d *driver) reply(with string, message *primitive.MessageExt) {
	body := []byte("re: " + string(message.Body))
	made, err := consumer.CreateReplyMessage(message, body)
	if err == nil {
		// 2.1.2 takes the body for properties and leaves the reply without one.
		made.Body = body
		_, err = d.producers[with].SendSync(context.Background(), made)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "reply", err)
	}
}

func (d *driver) lite(wish object) error {
	made, err := rocketmq.NewPullConsumer(d.consumerOptions(wish)...)
	if err != nil {
		return err
	}
	if err := made.Subscribe(wish.text("topic"), selector(wish)); err != nil {
		return err
	}
	if err := made.Start(); err != nil {
		return err
	}
	d.pullers[wish.text("id")] = made
	d.stops[wish.text("id")] = func() { made.Shutdown() }
	return nil
}

func (d *driver) poll(wish object) (object, error) {
	limit := time.Duration(wish.number("timeout")) * time.Millisecond
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	made := d.pullers[wish.text("id")]
	values := []object{}
	got, err := made.Poll(ctx, limit)
	if err != nil && !consumer.IsNoNewMsgError(err) {
		return nil, err
	}
	if err == nil {
		for _, message := range got.GetMsgList() {
			values = append(values, seen(message))
		}
		made.ACK(ctx, got, consumer.ConsumeSuccess)
	}
	return object{"messages": values}, nil
}

// ---------------------------------------------------------------------- admin

func (d *driver) admin(wish object) (object, error) {
	made, err := admin.NewAdmin(admin.WithResolver(d.resolver()))
	if err != nil {
		return nil, err
	}
	defer made.Close()
	ctx := context.Background()
	topic := wish.text("topic")
	switch wish.text("op") {
	case "topic":
		queues := wish.number("queues")
		return nil, made.CreateTopic(
			ctx, admin.WithTopicCreate(topic), admin.WithBrokerAddrCreate(wish.text("broker")),
			admin.WithReadQueueNums(queues), admin.WithWriteQueueNums(queues),
		)
	case "delete":
		return nil, made.DeleteTopic(ctx, admin.WithTopicDelete(topic))
	case "topics":
		list, err := made.FetchAllTopicList(ctx)
		if err != nil {
			return nil, err
		}
		return object{"topics": list.TopicList}, nil
	}
	queues, err := made.FetchPublishMessageQueues(ctx, topic)
	return object{"routed": err == nil && len(queues) > 0, "count": len(queues)}, nil
}
