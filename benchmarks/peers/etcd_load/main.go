// Closed-loop puts on etcd by its own client library, so that the client is not a Python process.
//
//	go build -o etcd_load .
//	etcd_load -endpoints HOST:PORT,… -leader                  prints the leader's endpoint
//	etcd_load -endpoints HOST:PORT -conns 1 -inflight 64 -size 256 -txn 1 -warm 1 -seconds 5
//
// A load speaks the lines of dledger/bench/worker.py: WARM; after BEGIN on standard input the window, then END; after
// STOP the result as JSON, with a histogram of the same buckets as dledger/bench/histogram.py.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/bits"
	"math/rand"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const (
	slice        = 100 * time.Millisecond
	settled      = 5   // slices: the last five together are within a tenth of the five before
	within       = 0.1 // and the window begins
	longestWarm  = 4   // times the least warm-up
	subBits      = 6   // 64 buckets for each power of two
	callDeadline = 30 * time.Second
)

type caller struct {
	sync.Mutex
	latencies []int64
	failed    int64
	problem   string
}

type load struct {
	clients []*clientv3.Client
	value   string
	txn     int
	next    atomic.Int64
	done    atomic.Int64
	window  atomic.Bool
	stop    atomic.Bool
	callers []*caller
	group   sync.WaitGroup
}

func bucket(value int64) int {
	shift := bits.Len64(uint64(value)) - subBits - 1
	if shift < 0 {
		shift = 0
	}
	return shift<<subBits + int(value>>shift)
}

func connect(endpoints []string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints: endpoints, DialTimeout: 10 * time.Second, Logger: zap.NewNop(),
	})
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "etcd_load:", err)
	os.Exit(1)
}

// Prints the endpoint of the member that leads.
func printLeader(endpoints []string) {
	client, err := connect(endpoints)
	if err != nil {
		fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, endpoint := range endpoints {
		status, err := client.Status(ctx, endpoint)
		if err != nil {
			fatal(err)
		}
		if status.Leader != 0 && status.Header.MemberId == status.Leader {
			fmt.Println(endpoint)
			return
		}
	}
	fatal(fmt.Errorf("nobody of %v leads", endpoints))
}

func (l *load) put(client *clientv3.Client) error {
	ctx, cancel := context.WithTimeout(context.Background(), callDeadline)
	defer cancel()
	if l.txn == 1 {
		_, err := client.Put(ctx, fmt.Sprintf("/k/%012d", l.next.Add(1)), l.value)
		return err
	}
	ops := make([]clientv3.Op, l.txn)
	for i := range ops {
		ops[i] = clientv3.OpPut(fmt.Sprintf("/k/%012d", l.next.Add(1)), l.value)
	}
	_, err := client.Txn(ctx).Then(ops...).Commit()
	return err
}

func (l *load) run(number int) {
	defer l.group.Done()
	client, mine := l.clients[number%len(l.clients)], l.callers[number]
	for !l.stop.Load() {
		began := time.Now()
		err := l.put(client)
		took := time.Since(began).Nanoseconds()
		if err == nil {
			l.done.Add(1)
		}
		if !l.window.Load() {
			continue
		}
		mine.Lock()
		if err == nil {
			mine.latencies = append(mine.latencies, took)
		} else {
			mine.failed++
			mine.problem = err.Error()
		}
		mine.Unlock()
	}
}

func sum(values []float64) (total float64) {
	for _, value := range values {
		total += value
	}
	return
}

func hasSettled(rates []float64) bool {
	n := len(rates)
	if n < 2*settled {
		return false
	}
	late, early := sum(rates[n-settled:]), sum(rates[n-2*settled:n-settled])
	return late > 0 && late-early <= within*max(late, early) && early-late <= within*max(late, early)
}

func (l *load) slice() float64 {
	before, began := l.done.Load(), time.Now()
	time.Sleep(slice)
	return float64(l.done.Load()-before) * float64(l.txn) / time.Since(began).Seconds()
}

func (l *load) warmUp(least time.Duration) float64 {
	began, rates := time.Now(), []float64{}
	for {
		rates = append(rates, l.slice())
		past := time.Since(began)
		if past >= least && (hasSettled(rates) || past >= longestWarm*least) {
			return past.Seconds()
		}
	}
}

func sayAndWait(in *bufio.Scanner, word, answer string) {
	fmt.Println(word)
	if !in.Scan() || in.Text() != answer {
		os.Exit(1) // whoever started us is gone
	}
}

func (l *load) result(elapsed, warm float64, slices []float64) map[string]any {
	counts := map[string]int{}
	var total, highest, count, failed int64
	problem := ""
	for _, mine := range l.callers {
		mine.Lock()
		for _, took := range mine.latencies {
			counts[strconv.Itoa(bucket(took))]++
			total += took
			count++
			highest = max(highest, took)
		}
		failed += mine.failed
		if problem == "" {
			problem = mine.problem
		}
		mine.Unlock()
	}
	entries := count * int64(l.txn)
	return map[string]any{
		"acknowledged": entries, "byte_count": entries * int64(len(l.value)), "failed": failed * int64(l.txn),
		"refused": 0, "elapsed_s": elapsed, "warmup_s": warm, "slices": slices, "first_error": problem,
		"histogram": map[string]any{"counts": counts, "total_ns": total, "max_ns": highest},
	}
}

func main() {
	endpoints := flag.String("endpoints", "127.0.0.1:2379", "client addresses")
	leader := flag.Bool("leader", false, "print the leader's endpoint and stop")
	conns := flag.Int("conns", 1, "connections")
	inflight := flag.Int("inflight", 1, "callers")
	size := flag.Int("size", 256, "bytes of a value")
	txn := flag.Int("txn", 1, "puts in a transaction; 1: plain puts")
	warm := flag.Float64("warm", 1, "least warm-up, seconds")
	seconds := flag.Float64("seconds", 5, "length of the window")
	flag.Parse()
	addresses := strings.Split(*endpoints, ",")
	if *leader {
		printLeader(addresses)
		return
	}
	body := make([]byte, *size)
	rand.Read(body)
	l := &load{value: string(body), txn: *txn}
	for i := 0; i < *conns; i++ {
		client, err := connect(addresses)
		if err != nil {
			fatal(err)
		}
		l.clients = append(l.clients, client)
	}
	for i := 0; i < *inflight; i++ {
		l.callers = append(l.callers, &caller{})
	}
	for i := range l.callers {
		l.group.Add(1)
		go l.run(i)
	}
	in := bufio.NewScanner(os.Stdin)
	warmed := l.warmUp(time.Duration(*warm * float64(time.Second)))
	sayAndWait(in, "WARM", "BEGIN")
	l.window.Store(true)
	began, slices := time.Now(), []float64{}
	for time.Since(began).Seconds() < *seconds {
		slices = append(slices, l.slice())
	}
	l.window.Store(false)
	result := l.result(time.Since(began).Seconds(), warmed, slices)
	sayAndWait(in, "END", "STOP")
	l.stop.Store(true)
	out, _ := json.Marshal(result)
	fmt.Println(string(out))
	os.Stdout.Sync()
}
