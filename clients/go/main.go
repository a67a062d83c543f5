// Command scenario calls user-service and order-service and checks every response.
//
// It reads USER_SERVICE_ADDR, ORDER_SERVICE_ADDR and USER_SERVICE_PID, and prints a line for each step.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	orderv1 "example.com/outbox/clients/go/gen/order/v1"
	userv1 "example.com/outbox/clients/go/gen/user/v1"
)

// Paths are relative to the folder of this client, in which the program runs.
const (
	serviceConfigFile = "../service_config.json"
	moneyVectorsFile  = "../money_vectors.json"
)

// services holds the stubs of both services, on channels with the same options.
type services struct {
	users  userv1.UserServiceClient
	orders orderv1.OrderServiceClient
	close  func()
}

// errSkipped is returned by a step that cannot run here.
var errSkipped = errors.New("skipped")

func main() {
	if len(os.Args) > 1 && os.Args[1] == "--version" {
		fmt.Printf("go %s, grpc-go %s\n", strings.TrimPrefix(runtime.Version(), "go"), grpc.Version)
		return
	}
	passed, err := run(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
	}
	if err != nil || !passed {
		os.Exit(1)
	}
}

// run runs the steps in order and reports whether all of them passed.
func run(ctx context.Context) (bool, error) {
	services, err := dial()
	if err != nil {
		return false, err
	}
	defer services.close()
	scenario := scenario{services: services}
	passed := true
	for _, step := range scenario.steps() {
		detail, err := step.run(ctx)
		switch {
		case errors.Is(err, errSkipped):
			fmt.Printf("skipped\t%s\t%s\n", step.name, oneLine(err.Error()))
		case err != nil:
			passed = false
			fmt.Printf("failed\t%s\t%s\n", step.name, oneLine(err.Error()))
		default:
			fmt.Printf("ok\t%s\t%s\n", step.name, oneLine(detail))
		}
	}
	return passed, nil
}

// dial opens a channel to each service. Timeouts, retries and waiting for a server that is down come from the service
// config.
func dial(more ...grpc.DialOption) (services, error) {
	config, err := os.ReadFile(serviceConfigFile)
	if err != nil {
		return services{}, err
	}
	options := append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(string(config)),
	}, more...)
	users, err := grpc.NewClient(os.Getenv("USER_SERVICE_ADDR"), options...)
	if err != nil {
		return services{}, fmt.Errorf("USER_SERVICE_ADDR: %w", err)
	}
	orders, err := grpc.NewClient(os.Getenv("ORDER_SERVICE_ADDR"), options...)
	if err != nil {
		return services{}, fmt.Errorf("ORDER_SERVICE_ADDR: %w", err)
	}
	return services{
		users:  userv1.NewUserServiceClient(users),
		orders: orderv1.NewOrderServiceClient(orders),
		close: func() {
			_ = users.Close()
			_ = orders.Close()
		},
	}, nil
}

func oneLine(text string) string {
	return strings.Join(strings.Fields(text), " ")
}
