package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	userv1 "example.com/outbox/clients/go/gen/user/v1"
)

// refusal is what the services say of a call that they refuse: the parts of its google.rpc.Status.
type refusal struct {
	code          codes.Code
	reason        string // what to branch on
	domain        string
	fields        []string // the bad fields, sorted
	preconditions []string // the types of what does not hold
	retryDelay    time.Duration
}

func readRefusal(err error) refusal {
	refused := refusal{code: status.Code(err)}
	for _, detail := range status.Convert(err).Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			refused.reason, refused.domain = detail.GetReason(), detail.GetDomain()
		case *errdetails.BadRequest:
			for _, violation := range detail.GetFieldViolations() {
				refused.fields = append(refused.fields, violation.GetField())
			}
			slices.Sort(refused.fields)
		case *errdetails.PreconditionFailure:
			for _, violation := range detail.GetViolations() {
				refused.preconditions = append(refused.preconditions, violation.GetType())
			}
		case *errdetails.RetryInfo:
			refused.retryDelay = detail.GetRetryDelay().AsDuration()
		}
	}
	return refused
}

// wantRefusal checks that a call was refused, and for this reason.
func wantRefusal(err error, code codes.Code, reason string) (refusal, error) {
	if err == nil {
		return refusal{}, fmt.Errorf("accepted, where %v %s was expected", code, reason)
	}
	refused := readRefusal(err)
	if refused.code != code || refused.reason != reason {
		return refusal{}, fmt.Errorf("want %v %s, got reason %q: %w", code, reason, refused.reason, err)
	}
	return refused, nil
}

// refusals: a refusal says what is wrong, all at once, and when to try again.
func (s *scenario) refusals(ctx context.Context) (string, error) {
	_, err := s.users.CreateUser(ctx, &userv1.CreateUserRequest{Email: "nobody", RequestId: uuid.NewString()})
	invalid, err := wantRefusal(err, codes.InvalidArgument, "VALIDATION_FAILED")
	if err != nil {
		return "", err
	}
	if invalid.domain != "user-service" || !slices.Equal(invalid.fields, []string{"email", "name"}) {
		return "", fmt.Errorf("not what is wrong: %+v", invalid)
	}
	_, err = s.orders.CreateOrder(ctx, newOrder(uuid.NewString(), euros(1, 0)))
	unknown, err := wantRefusal(err, codes.FailedPrecondition, "USER_UNKNOWN")
	if err != nil {
		return "", err
	}
	if unknown.retryDelay <= 0 || len(unknown.preconditions) == 0 {
		return "", fmt.Errorf("no delay or no precondition: %+v", unknown)
	}
	return fmt.Sprintf("bad fields %v; %v, again in %v", invalid.fields, unknown.preconditions, unknown.retryDelay), nil
}
